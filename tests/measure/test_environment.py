"""The recorded environment is complete and does not identify the machine or its user."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch

from llmbench.measure import environment as module
from llmbench.measure.cuda import attention_kernels, kernel_times, summed
from llmbench.measure.environment import commit, cpu_model, environment, gpus, ptxas

CPU = torch.device("cpu")


def test_this_machine() -> None:
    machine = environment(CPU)
    assert (machine.device, machine.driver, machine.ptxas, machine.compute_capability) == ("cpu", None, None, None)
    assert (machine.torch, machine.python) == (torch.__version__, platform.python_version())
    assert machine.threads == torch.get_num_threads()
    assert msgspec.json.decode(msgspec.json.encode(machine), type=type(machine)) == machine


def test_the_commit_of_a_copy_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMBENCH_COMMIT", "abc")
    here = commit(Path(__file__).parents[2])
    assert environment(CPU).commit == (here or "abc")  # git comes first
    monkeypatch.setattr("llmbench.measure.environment.commit", lambda root: None)
    assert environment(CPU).commit == "abc"


def test_no_host_user_or_path_is_recorded() -> None:
    text = msgspec.json.encode(environment(CPU)).decode()
    for private in (socket.gethostname(), str(Path.home()), str(Path(__file__).parents[2]), os.getcwd()):
        assert len(private) < 3 or private not in text
    assert "/home" not in text
    assert f'"{getpass.getuser()}"' not in text


def test_the_environment_of_a_simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H200", total_memory=150_754_820_096, multi_processor_count=132, major=9, minor=0
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(module, "gpus", lambda: module.Gpus("580.1", [], None))
    machine = environment(torch.device("cuda"))
    assert (machine.device, machine.datasheet, machine.compute_capability) == ("NVIDIA H200", "h200", "9.0")
    assert (machine.driver, machine.cudnn, machine.memory_bytes) == ("580.1", "91900", 150_754_820_096)
    assert machine.ptxas == ptxas(90)


def test_the_assemblers_version_has_three_numbers(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    version = ptxas(90)
    assert version is not None
    assert [part.isdigit() for part in version.split(".")] == [True] * 3


def test_gpus_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no library")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=broken))
    assert gpus() == (None, [], "no library")


def test_only_the_root_of_a_checkout_has_a_commit(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)

    inside = tmp_path / "site-packages"
    inside.mkdir()
    (tmp_path / "file").write_text("1")
    assert commit(tmp_path) is None
    git("init", "-q")
    assert commit(tmp_path) is None  # there is no commit yet
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == clean + "+"
    assert commit(inside) is None  # a folder inside another repository


def test_the_processor_has_a_name() -> None:
    name = cpu_model()
    assert name is None or name.strip()


def test_packages_does_not_load_torch() -> None:
    code = "import sys; from llmbench.measure.environment import packages; packages(); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


def test_the_attention_backend_that_ran(capfd: pytest.CaptureFixture[str]) -> None:
    q = torch.randn(1, 2, 32, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    flash = attention_kernels(lambda: attend(q, q, q), CPU)
    assert flash == ("aten::_scaled_dot_product_flash_attention_for_cpu",)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_kernels(lambda: attend(q, q, q), CPU) == ("aten::_scaled_dot_product_attention_math",)
    ran = {row.name: row.runs for row in kernel_times(lambda: (q + 1, q + 2, q * 3), CPU)}
    assert (ran["aten::add"], ran["aten::mul"]) == (2, 1)
    assert capfd.readouterr().err == ""  # the profiler printed nothing


def test_kernels_of_simulated_gpu_events() -> None:
    from torch.autograd import DeviceType

    def event(name: str, device: str, time_us: float, **more: bool) -> SimpleNamespace:
        kind = getattr(DeviceType, device)
        return SimpleNamespace(
            name=name, device_type=kind, self_device_time_total=time_us, self_cpu_time_total=99.0, **more
        )

    events = [
        event("aten::mm", "CPU", 0.0),
        event("gemm", "CUDA", 5.0),
        event("flash_fwd_kernel", "CUDA", 20.0),
        event("gemm", "CUDA", 7.0),
        event("step", "CUDA", 40.0, is_user_annotation=True),
    ]
    assert summed(events, on_gpu=True) == [
        ("flash_fwd_kernel", 1, pytest.approx(20e-6)),
        ("gemm", 2, pytest.approx(12e-6)),
    ]
    assert [row.name for row in summed(events, on_gpu=False)] == ["aten::mm"]


@pytest.mark.gpu
def test_the_attention_backend_of_a_gpu() -> None:
    q = torch.randn(1, 2, 256, 64, device="cuda", dtype=torch.bfloat16)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        (name,) = attention_kernels(lambda: attend(q, q, q), torch.device("cuda"))
    assert "flash" in name
