"""Budgets of engines: printed logs, the sum of the terms, and properties of what fits."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.answers.fit import fitted
from llmbench.errors import LayoutError, LLMBenchError, SpecError, UnknownNameError
from llmbench.sizing.serving.budget import Budget, budget
from llmbench.sizing.serving.changes import changes
from llmbench.sizing.serving.fit import Fit, Question, Sizer, smallest_count
from llmbench.sizing.serving.layouts import check_layout, layout_text, layouts, serving_layout
from llmbench.sizing.serving.pools import PlainPool, Pool, RatioPool, paged_pool
from llmbench.sizing.serving.shard import Rows, shards
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import device_heads, find_device_head, load_bundled
from llmbench.spec.engine import CONSTANTS, engine_names, find_engine, load_engine

GIB = 2**30


def budgets(
    model: str,
    engine: str,
    device: str,
    total: float,
    *,
    utilization: float,
    layout: str = "",
    weights: str | None = None,
    kv: str | None = None,
    seq: int = 8192,
) -> list[Budget]:
    """The budgets of all stages, on a device whose total memory a log printed in GiB."""
    head = find_device_head(device)._replace(cuda_memory_bytes=round(total * GIB))
    parallel, profile = serving_layout(layout), find_engine(engine)
    return [
        budget(profile, head, shard, parallel, seq=seq, utilization=utilization)
        for shard in shards(load_bundled(model), parallel, profile, weights=weights, kv=kv)
    ]


def term(own: Budget, name: str) -> float:
    """The GiB of the terms whose names begin with `name`."""
    return sum(each.value for each in own.terms if each.term.startswith(name)) / GIB


def test_vllm_prints_these_budgets() -> None:
    """Figures of public logs of vLLM: peak of the profiling step, and memory and tokens of the cache."""
    h100 = {"device": "h100-sxm", "total": 79.19}
    llama: dict[str, object] = {"model": "llama3.1-8b", "engine": "vllm@0.19", "utilization": 0.95, **h100}
    rows: list[tuple[dict[str, object], float, float | None, int | None]] = [
        (llama, 1.89, 58.11, 476_016),
        ({**llama, "kv": "fp8"}, 1.89, 58.11, 952_032),
        ({**llama, "layout": "tp=4"}, 1.89, None, None),
        ({"model": "qwen2.5-7b", "engine": "vllm@0.19", "utilization": 0.95, **h100}, 2.21, 58.53, 1_096_000),
        ({"model": "qwen3-14b", "engine": "vllm@0.16", "utilization": 0.9, **h100}, 5.64, None, None),
        ({"model": "qwen3-14b", "engine": "vllm@0.17", "utilization": 0.9, **h100}, 2.23, None, None),
        ({"model": "qwen3-0.6b", "engine": "vllm@0.11", "utilization": 0.9, **h100}, 5.56, 64.45, None),
        ({"model": "gpt-oss-120b", "engine": "vllm@0.11", "utilization": 0.95, **h100}, 7.38, 3.33, None),
        ({"model": "llama3-8b", "engine": "vllm@0.6.4", "utilization": 0.9, **h100}, 1.26, 53.29, None),
    ]  # fmt: skip
    for question, peak, cache, tokens in rows:
        (own,) = budgets(**question)  # type: ignore[arg-type]
        assert term(own, "activations") == pytest.approx(peak, abs=0.011), question
        if cache is not None:
            assert own.cache / GIB == pytest.approx(cache, rel=0.02), question
        if tokens is not None:
            assert own.pool.tokens == pytest.approx(tokens, rel=0.001), question


def test_experts_get_the_tokens_of_all_copies_of_the_attention() -> None:
    """A public log of vLLM 0.20: Kimi-K2.6 with dp=8,ep=8 on H200 has a peak of 14.75 GiB, and its layers have the
    sizes of Kimi-K2. A layer of 8,192 tokens alone needs 2.79 GiB."""
    (own,) = budgets("kimi-k2", "vllm@0.20", "h200", 140.4, utilization=0.6, layout="dp=8,ep=8", weights="w4a16")
    assert term(own, "activations") == pytest.approx(14.75, rel=0.1)
    (one,) = budgets("kimi-k2", "vllm@0.20", "h200", 140.4, utilization=0.6, layout="tp=8,ep=8", weights="w4a16")
    assert term(one, "activations") < 3


def test_the_logits_stay_on_the_last_stage() -> None:
    """vLLM's log of Llama-3.1-8B with two stages says 1.10 GiB for the first stage."""
    first, last = budgets("llama3.1-8b", "vllm@0.19", "h100-sxm", 79.19, utilization=0.95, layout="pp=2")
    assert term(first, "activations of a layer") == pytest.approx(1.10, abs=0.01)
    assert term(last, "activations and sampling") == pytest.approx(1.89, abs=0.01)


def test_the_terms_add_up_to_the_memory() -> None:
    for engine in engine_names():
        llamacpp = engine == "llamacpp"
        for model, layout in (("llama3-8b", ""), ("gpt-oss-20b", "tp=2"), ("deepseek-v3", "tp=8,ep=8")):
            layout = "pp=2" if llamacpp and layout else layout
            for own in budgets(model, engine, "h200", 139.8, utilization=0.8, layout=layout):
                assert sum(each.value for each in own.terms) == own.device.total_bytes
                assert all(each.value >= 0 for each in own.terms[:-1])


def test_vllm_groups_the_layers_of_gemma3() -> None:
    """62 layers: 10 keep all tokens, 52 keep 1,024. Groups of 10 need 8 layers of padding, and one request of 8,192
    tokens takes 4.38 GiB, more than all 62 layers at full length."""
    (own,) = budgets("gemma3-27b", "vllm@0.11", "h200", 139.8, utilization=0.9)
    pool = own.pool
    assert getattr(pool, "padding") == 8  # noqa: B009
    assert pool.request_bytes(8192) / GIB == pytest.approx(4.38, abs=0.005)
    assert pool.request_bytes(8192) > 62 * 8192 * 8192


def test_classes_of_similar_size_form_groups_of_the_larger_size() -> None:
    full = Rows("all", 0, Fraction(1024), 0, False, 10)
    window = Rows("window", 128, Fraction(1024), 0, False, 12)
    new, old = find_engine("vllm@0.19"), find_engine("vllm@0.9")
    assert paged_pool(GIB, [full, window], new, 2048).padding == 2  # 12 < 1.5 × 10
    assert paged_pool(GIB, [full, window], old, 2048).padding == 2  # 12 < 1.25 × 10
    wider = window._replace(layers=14)
    assert paged_pool(GIB, [full, wider], new, 2048).padding == 4
    assert paged_pool(GIB, [full, wider], old, 2048).padding == 6  # two groups of 10 for 14 layers


LAYERS = [
    Rows("all", 0, Fraction(1024), 0, False, 10),
    Rows("window", 128, Fraction(1000), 0, False, 12),
    Rows("chunk", 513, Fraction(7, 2), 0, False, 3),
    Rows("state", 0, Fraction(0), 7777, False, 5),
]


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["ratio", "plain", "paged"]),
    st.sets(st.sampled_from(LAYERS), min_size=1),
    st.integers(1, 150),
    st.integers(1, 100_000),
    st.integers(1, 300),
)
def test_a_cache_for_some_requests_is_the_smallest_one(
    kind: str, layers: set[Rows], percent: int, length: int, users: int
) -> None:
    def pool(size: int) -> Pool:
        rows = tuple(layers)
        if kind == "plain":
            return PlainPool(size, rows, 16)
        if kind == "paged":
            return paged_pool(size, rows, find_engine("vllm"), 2048)
        return RatioPool(size=size, rows=rows, window_percent=percent, states_percent=percent, states_per_request=3)

    needed = pool(0).bytes_for(users, length)
    assert pool(needed).requests(length) >= users
    assert pool(needed - 1).requests(length) < users


def test_an_older_version_lends_its_constants() -> None:
    engine = find_engine("vllm@0.14")
    assert engine.version == "0.11.0"
    assert engine.notes
    assert find_engine("vllm@0.19").notes == find_engine("vllm").notes == []
    with pytest.raises(SpecError, match="no profile of vLLM"):
        find_engine("vllm@0.2")


def test_wrong_engines_say_what_is_wrong() -> None:
    for text, message in (
        ("vlm", "unknown"),
        ("vllm@new", "not a version"),
        ("vllm,seqs=3", "seqs"),
        ("vllm,sequences=many", "not a number"),
        ("ideal@3", "no versions"),
        ("vllm,block_tokens=0", "at least 1"),
        ("vllm,sequences=64.5", "not a whole number"),
        ("vllm,outside_torch=1.5", "not a whole number of bytes"),
        ("vllm,sequences=64,sequences=65", "given twice"),
        ("vllm,sequences=\u0661", "not a number"),
    ):
        with pytest.raises((UnknownNameError, SpecError), match=message):
            find_engine(text)
    replaced = find_engine("vllm@0.19,sequences=64,outside_torch=1.5GiB")
    assert replaced.whole("outside_torch") == 3 * GIB // 2
    assert find_engine(replaced.text) == replaced


def test_every_constant_is_known_and_has_a_source() -> None:
    for name in engine_names():
        for version in load_engine(name).versions:
            assert set(version.constants) <= set(CONSTANTS)


def test_experts_use_the_gpus_of_the_attention() -> None:
    assert serving_layout("tp=8,ep=8") == Layout(tp=8, ep=8, etp=1)
    assert serving_layout("dp=8,ep=8") == Layout(dp=8, ep=8, etp=1)
    assert serving_layout("tp=4,dp=2,ep=2") == Layout(tp=4, dp=2, ep=2, etp=4)
    assert serving_layout("tp=4,dp=2") == Layout(tp=4, dp=2, etp=8)
    for text in ("tp=8,ep=3", "dp=8,zero=3", "tp=2,sp", "cp=2", "pp=2,first=4", "pp=2,stages=Et*8|t*8L"):
        with pytest.raises(LayoutError):
            serving_layout(text)
    # Qwen3-30B-A3B: 48 layers of 128 experts with three matrices of 2,048 × 768. A GPU has an eighth of them.
    experts = 2 * 48 * 128 * 3 * 2048 * 768
    whole, *parts = (
        shards(load_bundled("qwen3-30b-a3b"), serving_layout(text), find_engine("ideal"))[0].weights
        for text in ("", "dp=8", "dp=8,ep=8")
    )
    assert parts == [whole - 7 * experts // 8] * 2


MODELS = {name: load_bundled(name) for name in ("llama3.2-1b", "gpt-oss-20b", "deepseek-v2-lite", "jamba-v0.1")}
SIZERS = {name: Sizer(spec) for name, spec in MODELS.items()}

questions = st.builds(
    Question,
    engine=st.sampled_from([*engine_names(), "vllm@0.6.4", "vllm@0.11"]).map(find_engine),
    device=st.sampled_from(device_heads()),
    layout=st.sampled_from(["", "tp=2", "pp=2", "tp=2,pp=2", "dp=2"]).map(serving_layout),
    seq=st.integers(1, 200_000),
    users=st.integers(1, 2000),
    utilization=st.floats(0.05, 1),
    kv=st.sampled_from([None, "fp8"]),
)


def answer(name: str, question: Question) -> Fit | None:
    try:
        return SIZERS[name].fit(question)
    except LLMBenchError:
        return None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MODELS)), questions, st.floats(0, 1), st.integers(1, 100_000))
def test_more_memory_never_fits_less(name: str, question: Question, more: float, longer: int) -> None:
    replace = msgspec.structs.replace
    fit = answer(name, question)
    if fit is None:
        return
    for own in fit.budgets:
        assert sum(each.value for each in own.terms) == own.device.total_bytes
    assert question.utilization is not None
    richer = answer(name, replace(question, utilization=question.utilization + more * (1 - question.utilization)))
    assert richer is not None
    assert richer.capacity >= fit.capacity
    assert richer.longest >= fit.longest
    assert richer.filled <= fit.filled
    longest = answer(name, replace(question, seq=question.seq + longer))
    context = MODELS[name].max_position_embeddings
    assert (longest is None) == (context is not None and question.seq + longer > context)
    assert longest is None or longest.capacity <= fit.capacity
    assert fit.fits or not fit.runs or fit.longest_each < question.seq
    if fit.fits:
        assert fit.longest_each >= question.seq
        assert fit.filled <= 1


def test_sglang_prints_this_cache() -> None:
    """A log of Qwen3-235B-A22B-FP8 on four H100: 367,404 tokens, keys and values of 8.23 GiB each."""
    (own,) = budgets(
        "qwen3-235b-a22b", "sglang", "h100-sxm", 79.19, utilization=0.93, layout="tp=4", weights="fp8-block"
    )
    assert own.pool.tokens == pytest.approx(367_404, rel=0.03)
    assert own.cache / GIB == pytest.approx(16.46, rel=0.03)


def test_llamacpp_prints_this_compute_buffer() -> None:
    (own,) = budgets("llama3-8b", "llamacpp", "rtx-4090", 23.53, utilization=1)
    assert term(own, "compute buffer") * 1024 == 258.5
    # A wide layer and a small vocabulary: a log of Mixtral 8x7B on an M3 Max says 115.50 MiB.
    (wide,) = budgets("mixtral-8x7b", "llamacpp", "h100", 79.19, utilization=1)
    assert term(wide, "compute buffer") * 1024 == pytest.approx(115.5, rel=0.12)
    # Without the head, a GPU still needs both inner matrices of a feed-forward in fp32, the stream and the norm of it.
    first, last = budgets("llama3.3-70b", "llamacpp", "h100", 79.19, utilization=1, layout="pp=2")
    assert term(first, "compute buffer") * GIB == 512 * 4 * (2 * 28_672 + 2 * 8192)
    assert term(last, "compute buffer") * GIB == 512 * 4 * (128_256 + 8192)
    # llama-server since June 2026: a log of gemma-3-1b on two GPUs has 82.07 MiB on both, where all logits need 512.
    few = budgets("gemma3-1b", "llamacpp,all_logits=0", "h100", 79.19, utilization=1, layout="pp=2")
    assert all(term(own, "compute buffer") * 1024 < 82.07 for own in few)


def test_the_limit_of_sequences_bounds_the_users() -> None:
    sizer = Sizer(load_bundled("llama3.2-1b"))
    question = Question(
        engine=find_engine("vllm,sequences=4"),
        device=find_device_head("h100"),
        layout=serving_layout("dp=2"),
        seq=8192,
        users=8,
    )
    enough = sizer.fit(question)
    assert (enough.fits, enough.limited, enough.capacity) == (True, True, 8)
    short = sizer.fit(msgspec.structs.replace(question, users=9))
    assert (short.fits, short.limited, short.longest_each) == (False, True, 0)
    nearest, fewer, more = changes(sizer, short, own_layout=True)
    assert (nearest.option, nearest.factor) == ("--engine vllm@0.21.0,sequences=5", 5 / 4)
    assert (fewer.option, more.option) == ("--users 8", "--layout dp=4")


def test_a_predictor_adds_its_weights_and_a_layer_of_cache() -> None:
    """DeepSeek-V3's module: a layer, two norms, a projection and a norm, without embedding and head."""
    plain = shards(load_bundled("deepseek-v3"), Layout(), find_engine("vllm"))[0]
    (more,) = shards(load_bundled("deepseek-v3"), Layout(), find_engine("vllm,mtp=1"))
    assert sum(rows.layers for rows in more.rows) == sum(rows.layers for rows in plain.rows) + 1 == 62
    assert 11e9 < more.weights - plain.weights < 12e9
    with pytest.raises(SpecError, match="has 0 modules"):
        shards(load_bundled("llama3-8b"), Layout(), find_engine("vllm,mtp=1"))


def test_an_engine_refuses_formats_that_it_cannot_store() -> None:
    for engine, kv in (("vllm", "q8_0"), ("llamacpp", "fp8"), ("trtllm", "fp8_ds_mla")):
        with pytest.raises(SpecError, match="has no cache in the format"):
            shards(load_bundled("llama3-8b"), Layout(), find_engine(engine), kv=kv)


def test_engines_store_the_keys_of_an_indexer_in_fp8() -> None:
    """DeepSeek-V3.2 has keys of 128 elements beside a latent of 576. In fp8, they have a scale of 4 bytes.

    vLLM and SGLang store the latents of such a model as fp8_ds_mla if the cache is fp8.
    """
    for engine, kv, indexer, latent in (
        ("vllm", None, 132, 1152),
        ("sglang", "fp8", 132, 656),
        ("sglang", "fp8_e5m2", 132, 576),
        ("vllm", "fp8", 132, 656),
        ("vllm", "fp8_e5m2", 132, 656),
        ("trtllm", "fp8", 132, 576),
        ("vllm", "fp8_ds_mla", 132, 656),
        ("ideal", "fp8_ds_mla", 132, 656),
        ("ideal", "fp8", 128, 576),
        ("ideal", None, 256, 1152),
    ):
        (own,) = shards(load_bundled("deepseek-v3.2"), Layout(), find_engine(engine), kv=kv)
        assert [rows.row_bytes for rows in own.rows] == [latent + indexer], (engine, kv)


def test_an_engine_refuses_weights_that_it_does_not_load() -> None:
    for engine, weights in (("vllm", "mlx"), ("llamacpp", "awq"), ("trtllm", "gguf-q4-k-m")):
        with pytest.raises(SpecError, match="does not load weights in the format"):
            shards(load_bundled("llama3-8b"), Layout(), find_engine(engine), weights=weights)


def test_apple_gpus_get_the_share_that_macos_gives_them() -> None:
    """llama.cpp's log of an M2 Max with 64 GiB: recommendedMaxWorkingSetSize is 48 GiB. Metal has no CUDA context."""
    device = find_device_head("m4-pro-64gb")
    (shard,) = shards(load_bundled("llama3-8b"), Layout(), find_engine("llamacpp"))
    for utilization, gib in ((None, 48), (0.5, 32)):
        own = budget(find_engine("llamacpp"), device, shard, Layout(), seq=8192, utilization=utilization)
        assert own.usable + GIB == gib * GIB  # 1 GiB stays free
        assert not term(own, "CUDA")


def test_inexact_constants_make_an_answer_approximate() -> None:
    for model, engine, device, words in (
        ("mixtral-8x7b", "vllm", "h200", ["CUDA graphs"]),
        ("mixtral-8x7b", "vllm,graphs=9GiB", "h200", []),
        ("llama3-8b", "vllm", "h200", []),
        ("llama3-8b", "trtllm", "h200", ["outside PyTorch"]),
        ("gpt-oss-20b", "vllm@0.11", "h200", []),
        ("gpt-oss-20b", "vllm@0.11", "b200", ["MXFP4"]),
        ("qwen3.5-27b", "vllm", "h200", ["activations of the"]),
        ("qwen3.5-27b", "llamacpp", "h200", ["logits of every token"]),
        ("llama3-8b", "llamacpp,all_logits=0", "h200", ["largest tensors"]),
    ):
        (row,) = fitted(load_bundled(model), devices=[device], engine=engine)
        assert len(row.approximate_because) == len(words), (model, engine, device)
        assert all(word in reason for word, reason in zip(words, row.approximate_because, strict=True))
    (row,) = fitted(load_bundled("llama3-8b"), devices=["h20"])
    (reason,) = row.approximate_because
    assert "CUDA program sees is not known" in reason


def fewest(model: str, device: str, users: int, **options: object) -> tuple[int, str]:
    """The smallest number of GPUs for requests of 32,768 tokens, and their layout."""
    question = Question(
        engine=find_engine(str(options.pop("engine", "vllm"))),
        device=find_device_head(device),
        layout=Layout(),
        seq=32768,
        users=users,
        **options,  # type: ignore[arg-type]
    )
    fit = smallest_count(Sizer(load_bundled(model)), question)
    assert fit is not None
    assert fit.fits
    return fit.question.layout.num_gpus, layout_text(fit.question.layout)


def test_the_smallest_number_of_gpus_is_that_of_all_layouts() -> None:
    """Tensor parallelism alone needs more GPUs, or does not suffice."""
    assert fewest("llama3.3-70b", "h100", 64) == (16, "tp=8,dp=2")
    assert fewest("qwen3-32b", "rtx-4090", 16)[0] == 16
    assert fewest("deepseek-v3", "h200", 64)[0] == 8
    assert fewest("deepseek-v3", "h200", 256)[0] == 16
    assert fewest("qwen3-235b-a22b", "a100-40gb-sxm", 24, weights="fp8")[0] == 16
    assert fewest("llama3.1-405b", "h100", 1) == (16, "tp=8,pp=2")  # replicas of a model that fits nowhere are no help
    assert fewest("llama3.3-70b", "rtx-4090", 1, engine="llamacpp")[1].startswith("pp=")


def test_the_table_tries_no_more_gpus_than_an_engine_or_a_device_has() -> None:
    """llama.cpp uses at most 16 devices, and a Mac has one GPU."""
    rows = fitted(load_bundled("deepseek-v3"), engine="llamacpp", users=200, seq=32768)
    tried = [row for row in rows if row.fit is None or row.fit.runs]
    assert max(row.gpus or 0 for row in tried) == 16
    assert {row.gpus or 1 for row in tried if row.device.vendor == "apple"} == {1}


@pytest.mark.parametrize("model", ["llama3.3-70b", "deepseek-v3", "qwen3-235b-a22b"])
def test_no_layout_that_is_tried_needs_fewer_gpus_than_the_answer(model: str) -> None:
    """Another search, over all layouts of tensor, pipeline, data and expert parallelism."""
    sizer, engine = Sizer(load_bundled(model)), find_engine("vllm")
    for device in ("h100", "h200", "b200"):
        gpus, _ = fewest(model, device, 64)
        half = gpus // 2
        texts = [f"tp={tp},pp={half // tp}" for tp in (1, 2, 4, 8) if half % tp == 0 and half // tp <= 8]
        texts += [f"tp={tp},dp={half // tp}" for tp in (1, 2, 4, 8) if half % tp == 0]
        texts += [f"{text},ep={half}" for text in texts if "dp=" in text and sizer.spec.is_moe]
        question = Question(engine=engine, device=find_device_head(device), layout=Layout(), seq=32768, users=64)
        for text in texts:
            try:
                fit = sizer.fit(msgspec.structs.replace(question, layout=serving_layout(text)))
            except LayoutError:
                continue
            assert not fit.fits, (device, text)


@given(st.sampled_from(["llama3.3-70b", "deepseek-v3"]), st.sampled_from(engine_names()), st.integers(1, 64))
def test_layouts_have_the_gpus_and_can_be_written(model: str, name: str, gpus: int) -> None:
    engine = find_engine(name)
    if gpus > (engine.spec.most_gpus or gpus):
        return
    for layout in layouts(load_bundled(model), engine, gpus):
        assert layout.num_gpus == gpus
        assert serving_layout(layout_text(layout)) == layout
        check_layout(engine, layout)


def test_a_layout_that_splits_a_block_is_refused_with_the_reason() -> None:
    """vLLM: "The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = 128"
    for Qwen3-235B-A22B-FP8 with tp=8. SGLang says the same of 18,432 / 32 = 576 for DeepSeek-R1."""

    def parts(model: str, layout: str, weights: str | None = None, engine: str = "vllm") -> None:
        shards(load_bundled(model), serving_layout(layout), find_engine(engine), weights=weights)

    for model, layout, weights, engine, reason, hint in (
        ("qwen3-235b-a22b", "tp=8", "fp8-block", "vllm", "192 of the 1,536 inputs of ffn.experts.down_proj", "ep=8"),
        ("qwen3-235b-a22b", "tp=8", "fp8-block", "sglang", "a block of 128 inputs", "tp=4"),
        ("qwen3-235b-a22b", "tp=4,dp=2", "fp8-block", "trtllm,", "copy of the attention", "dp=8"),
        ("qwen3-235b-a22b", "tp=8", "fp8-block", "trtllm", "a block of 128 inputs", "ep=8"),
        ("qwen3-30b-a3b", "tp=4", "fp8-block", "vllm", "192 of the 768", "ep=4"),
        ("qwen3-30b-a3b", "tp=2,dp=2", "fp8-block", "vllm", "192 of the 768", "ep=4, which keeps each expert whole"),
        ("deepseek-v3", "tp=32", None, "sglang", "576 of the 18,432 inputs of ffn.down_proj", "tp=16"),
        ("llama3-8b", "tp=32", "awq", "vllm", "448 of the 14,336", "tp=16"),
        ("llama3-8b", "tp=2", "gptq,group=4096", "vllm", "2,048 of the 4,096", "no tp"),
        ("qwen3-235b-a22b", "tp=8", "w4a16", "vllm", "192 of the 1,536", "ep=8"),
    ):
        with pytest.raises(LayoutError, match=reason) as refused:
            parts(model, layout, weights, engine.strip(","))
        assert hint in (refused.value.hint or ""), (model, layout)
    parts("qwen3-235b-a22b", "tp=8,ep=8", "fp8-block")
    parts("qwen3-235b-a22b", "tp=4", "fp8-block")
    parts("qwen3-235b-a22b", "tp=8", "awq")  # vLLM halves the groups of experts
    parts("qwen3-235b-a22b", "tp=8", "fp8-channel")
    parts("llama3.1-70b", "tp=8", "awq")
    parts("gpt-oss-120b", "tp=8")  # vLLM pads the experts


def test_a_chosen_layout_splits_no_block() -> None:
    (row,) = fitted(
        load_bundled("qwen3-235b-a22b"), devices=["h100"], gpus=8, weights=["fp8-block"], seq=32768, users=24
    )
    assert row.fits
    assert row.layout == "tp=8,ep=8"


def test_replicas_of_a_dense_model_are_engines_of_their_own() -> None:
    """Each replica has the budget of its own GPUs. Copies of the attention share the experts."""
    for engine in ("vllm", "sglang"):
        one, two = (budgets("llama3-8b", engine, "h100", 79.19, utilization=0.9, layout=text) for text in ("", "dp=2"))
        assert one[0].terms == two[0].terms
    sizes = [
        budgets("qwen3-30b-a3b", "sglang", "h20", 95.0, utilization=None, layout=text)[0].share  # type: ignore[arg-type]
        for text in ("tp=8,ep=8", "dp=8,ep=8")
    ]
    assert sizes[0] > sizes[1]


def test_no_request_is_longer_than_the_context() -> None:
    for model in ("gpt-oss-20b", "gemma3-27b", "llama3-8b"):
        (row,) = fitted(load_bundled(model), devices=["h200"], users=2)
        context = row.spec.max_position_embeddings
        assert row.fit is not None
        assert row.fit.longest == context
        assert row.fit.longest_each == context
    with pytest.raises(SpecError, match="context length of 8,192"):
        fitted(load_bundled("llama3-8b"), devices=["h200"], seq=16384)


def test_a_draft_model_needs_the_vocabulary_of_the_model() -> None:
    target, small = load_bundled("qwen2.5-7b"), load_bundled("qwen2.5-0.5b")  # 152,064 and 151,936 tokens
    for engine in ("vllm", "sglang", "trtllm", "ideal"):
        with pytest.raises(SpecError, match="151,936 tokens"):
            shards(target, Layout(), find_engine(engine), draft=small)
    for engine in ("llamacpp", "vllm,draft_vocabulary=128"):
        assert shards(target, Layout(), find_engine(engine), draft=small)
