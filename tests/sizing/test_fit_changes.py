"""Changes that make a model fit: which are tried, in which order, and that each suffices."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from llmbench.sizing.serving.changes import Change, changes
from llmbench.sizing.serving.fit import Question, Sizer, best_fit
from llmbench.sizing.serving.layouts import serving_layout
from llmbench.sizing.serving.proposals import GGUF_WEIGHTS
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import find_device_head, load_bundled
from llmbench.spec.engine import find_engine


def test_the_nearest_change_comes_first_and_each_change_suffices() -> None:
    sizer = Sizer(load_bundled("llama3.3-70b"))
    question = Question(
        engine=find_engine("vllm@0.19"), device=find_device_head("h100"), layout=Layout(), seq=8192, users=4
    )
    found = changes(sizer, sizer.fit(question))
    assert all(change.fit.fits for change in found)
    assert [change.option for change in found] == ["--weights nf4", "--weights nvfp4", "--gpus 4"]
    assert [(change.other_files, change.more_gpus) for change in found] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    assert "needs other files" in found[1].what
    tight = Sizer(load_bundled("llama3-8b"))
    many = msgspec.structs.replace(question, users=60)
    nearest = changes(tight, tight.fit(many))[:4]
    assert [change.option.split()[0] for change in nearest] == ["--kv-dtype", "--weights", "--seq", "--users"]
    shorter, fewer = (int(change.option.split()[1]) for change in nearest[2:])
    assert not tight.fit(msgspec.structs.replace(many, seq=shorter + 16)).fits
    assert not tight.fit(msgspec.structs.replace(many, users=fewer + 1)).fits
    turing = msgspec.structs.replace(question, device=find_device_head("t4"), users=1)
    small = Sizer(load_bundled("llama3.2-1b"))
    assert changes(small, small.fit(turing))[0].option == "--weights fp16"


def test_settings_of_the_engine_come_before_gpus_and_files() -> None:
    sizer = Sizer(load_bundled("qwen3-32b"))
    question = Question(engine=find_engine("vllm"), device=find_device_head("h100"), layout=Layout(), seq=8192, users=5)
    found = changes(sizer, sizer.fit(question))
    options = [next(iter(change.options)) for change in found]
    places = [options.index(name) for name in ("--utilization", "--kv-dtype", "--weights", "--gpus")]
    assert places == sorted(places)
    share = float(found[places[0]].options["--utilization"])
    less = msgspec.structs.replace(question, utilization=round(share - 0.01, 2))
    assert not sizer.fit(less).fits  # the smallest step that suffices


def test_two_settings_are_changed_if_one_does_not_suffice() -> None:
    sizer = Sizer(load_bundled("llama3.1-405b"))
    question = Question(
        engine=find_engine("vllm"), device=find_device_head("rtx-4090"), layout=Layout(), seq=8192, users=1
    )
    found = changes(sizer, sizer.fit(question))
    assert found
    assert all(len(change.options) == 2 and change.fit.fits for change in found)
    assert changes(sizer, sizer.fit(question), pairs=False) == []
    # A cut by more than half is no near change, so pairs come before it.
    large = Sizer(load_bundled("llama3.1-405b"))
    many = Question(
        engine=find_engine("vllm"), device=find_device_head("h200"), layout=Layout(tp=8), seq=32768, users=250
    )
    options = [change.option for change in changes(large, large.fit(many))]
    assert "--kv-dtype fp8 --gpus 32" in options[:4]
    assert options[-1].startswith("--users")


@pytest.mark.parametrize("model", ["llama3-8b", "qwen3-30b-a3b"])
def test_the_largest_gguf_recipe_that_fits_is_proposed(model: str) -> None:
    sizer = Sizer(load_bundled(model))
    question = Question(
        engine=find_engine("llamacpp"), device=find_device_head("rtx-3060"), layout=Layout(), seq=8192, users=8
    )
    sizes = {name: sizer.shards(msgspec.structs.replace(question, weights=name))[0].weights for name in GGUF_WEIGHTS}
    order = list(sizes.values())
    assert all(1.005 * larger > smaller for larger, smaller in pairwise(order))
    plain = sizer.fit(msgspec.structs.replace(question, weights="gguf-bf16", kv="q8_0", users=2, seq=4096))
    found = [change for change in changes(sizer, plain) if "--weights" in change.options]
    assert found
    for change in found:
        asked, proposed = change.fit.question, sizes[change.options["--weights"]]
        larger = [name for name, size in sizes.items() if size > 1.005 * proposed]
        assert not any(sizer.fit(msgspec.structs.replace(asked, weights=name)).fits for name in larger)


def test_every_format_of_the_cache_is_tried_the_largest_one_first() -> None:
    sizer = Sizer(load_bundled("llama3-8b"))
    question = Question(
        engine=find_engine("llamacpp"), device=find_device_head("rtx-3060"), layout=Layout(), seq=8192, users=1
    )
    named: dict[str, int] = {}
    for users in range(4, 24):
        fit = sizer.fit(msgspec.structs.replace(question, users=users))
        named |= {
            change.options["--kv-dtype"]: users
            for change in changes(sizer, fit, pairs=False)
            if "--kv-dtype" in change.options and not fit.fits
        }
    assert set(named) == {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0"}
    assert list(named.values()) == sorted(named.values())  # a smaller format only where the larger one does not fit
    # An engine stores 4-bit floats only on a device that computes them.
    for device, formats in (("h100", {"fp8"}), ("b200", {"fp8", "nvfp4"})):
        served = Question(
            engine=find_engine("vllm"), device=find_device_head(device), layout=Layout(), seq=8192, users=1
        )
        most = sizer.fit(served).capacity
        tried = set()
        for users in (most + 1, 2 * most + 20, 3 * most):
            fit = sizer.fit(msgspec.structs.replace(served, users=users))
            tried |= {
                change.options["--kv-dtype"]
                for change in changes(sizer, fit, pairs=False)
                if "--kv-dtype" in change.options
            }
        assert tried == formats


def test_a_pair_on_the_same_gpus_comes_before_more_gpus() -> None:
    sizer = Sizer(load_bundled("mistral-nemo-12b"))
    question = Question(
        engine=find_engine("vllm"), device=find_device_head("rtx-4090"), layout=Layout(), seq=32768, users=4
    )
    found = changes(sizer, sizer.fit(question))
    assert [change.more_gpus for change in found] == sorted(change.more_gpus for change in found)
    assert found[0].options.keys() == {"--kv-dtype", "--weights"}
    assert (found[0].fit.question.layout.num_gpus, found[-1].option) == (1, "--gpus 4")


def test_pairs_cut_requests_only_if_no_other_pair_suffices() -> None:
    sizer = Sizer(load_bundled("mistral-nemo-12b"))

    def same_gpus(kv: str | None, users: int) -> list[Change]:
        question = Question(
            engine=find_engine("vllm"),
            device=find_device_head("rtx-4090"),
            layout=Layout(),
            seq=32768,
            users=users,
            kv=kv,
        )
        return [change for change in changes(sizer, sizer.fit(question)) if not change.more_gpus]

    assert {frozenset(change.options) for change in same_gpus(None, 4)} == {frozenset({"--kv-dtype", "--weights"})}
    cut = same_gpus("fp8", 8)
    assert {frozenset(change.options) for change in cut} == {
        frozenset({"--weights", "--users"}),
        frozenset({"--weights", "--seq"}),
    }
    assert all(change.fit.question.users * change.fit.question.seq * 2 >= 8 * 32768 for change in cut)
    assert all(change.fit.fits for change in cut)


def test_stages_alone_use_any_number_of_gpus() -> None:
    sizer = Sizer(load_bundled("llama3.3-70b"))
    question = Question(
        engine=find_engine("llamacpp"),
        device=find_device_head("rtx-3090"),
        layout=serving_layout("pp=2"),
        seq=16384,
        users=3,
        kv="q8_0",
    )
    assert "--gpus 3" in [change.option for change in changes(sizer, sizer.fit(question))]


def test_of_layouts_with_as_many_users_the_first_one_is_shown() -> None:
    question = Question(
        engine=find_engine("vllm"), device=find_device_head("h100"), layout=Layout(), seq=131072, users=50
    )
    sizer = Sizer(load_bundled("llama3.1-8b"))
    best = best_fit(sizer, question, 2)
    stages = sizer.fit(msgspec.structs.replace(question, layout=serving_layout("pp=2")))
    assert best.capacity == stages.capacity > 0
    assert best.question.layout.tp == 2


def test_copies_of_the_attention_are_tried_where_tp_does_not_split_the_cache() -> None:
    def nearest(model: str, layout: str, users: int) -> Change:
        sizer = Sizer(load_bundled(model))
        question = Question(
            engine=find_engine("vllm"),
            device=find_device_head("h200"),
            layout=serving_layout(layout),
            seq=32768,
            users=users,
        )
        return changes(sizer, sizer.fit(question), own_layout=True)[0]

    for layout, gpus in (("tp=8", 8), ("tp=8,ep=8", 8), ("tp=16", 16)):
        change = nearest("deepseek-v3", layout, 96)
        found = serving_layout(change.options["--layout"])
        assert (found.num_gpus, change.fit.fits) == (gpus, True)
        assert found.dp * found.pp > 1
    both = nearest("deepseek-v3", "tp=8,dp=4,ep=32", 1500)
    assert both.options == {"--layout": "dp=32,ep=32", "--kv-dtype": "fp8"}
    # Of 4 KV heads, tp=4 stores each once, and tp=8 twice.
    for layout, copies in (("tp=4", False), ("tp=8", True)):
        change = nearest("qwen3-235b-a22b", layout, 70)
        same_gpus = change.fit.question.layout.num_gpus == serving_layout(layout).num_gpus
        assert ("--layout tp=4,dp=2" in change.option and same_gpus) == copies
    # Replicas of a dense model are no copies of its attention.
    dense = nearest("llama3.1-8b", "tp=16", 300)
    assert (dense.option, dense.what) == ("--layout tp=8,dp=2", "2 replicas of the model on the same GPUs")
