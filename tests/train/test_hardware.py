"""Devices and precisions."""

import pytest
import torch

from troth.errors import UserError
from troth.train.hardware import has_fast_bfloat16, resolve_device, resolve_precision


def test_auto_takes_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for amx, avx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx, raising=False)
        assert has_fast_bfloat16(cpu) is (amx or avx)
        assert resolve_precision("auto", cpu) is (torch.bfloat16 if amx or avx else None)
    assert resolve_precision("float32", cpu) is None
    assert resolve_precision("bfloat16", cpu) is torch.bfloat16
    assert not has_fast_bfloat16(torch.device("meta"))


def test_an_older_torch_without_the_probes_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert not has_fast_bfloat16(torch.device("cpu"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:7", "abacus"):
        with pytest.raises(UserError, match=rf"train\.device: there is no device '{name}'"):
            resolve_device(name)
