"""Imported in a fork server, so that each rank which it forks has a simulated GPU where it is told to use one."""

import contextlib
import os
import types

import torch

from simulated_gpu.group import register

NAME = "simulated"


class Stream(torch.cpu.Stream):
    """The only one."""

    stream_id, device_index, device_type = 0, 0, torch._C._autograd.DeviceType.PrivateUse1

    def record_event(self):
        return torch.cpu.Event()


def _device_module() -> types.ModuleType:
    """What torch keeps as `torch.cuda` for GPUs: one device a process, done with all that it was asked for."""
    module = types.ModuleType(f"torch.{NAME}")
    for name in dir(torch.cpu):
        if not name.startswith("__"):
            setattr(module, name, getattr(torch.cpu, name))
    module.Stream = Stream
    module.current_stream = lambda *_: Stream()
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.get_rng_state = torch.get_rng_state  # what it draws, it draws on the processor
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    module.device = lambda _: contextlib.nullcontext()
    module.manual_seed_all = lambda _: None
    module._is_in_bad_fork = lambda: False
    return module


def install() -> None:
    """Give torch the device, and our ranks the device for a GPU."""
    from lockstep.engine import evaluation, rank
    from lockstep.strategies import _joining

    torch.ops.load_library(os.environ["SIMULATED_GPU"])
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _device_module())
    _joining.BACKENDS[NAME] = register(NAME)
    real_choose, real_peak, real_placed = rank.choose, rank.peak_bytes, rank.placed

    def choose(plan, index, training):
        return torch.device(NAME, 0) if plan["device"] == "cuda" else real_choose(plan, index, training)

    def placed(module, device, training):
        """Weights that two modules share stay shared, as they do on the way to a GPU."""
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return real_placed(module, device, training)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    rank.placed = evaluation.placed = placed
    rank.choose = evaluation.choose = choose
    rank.peak_bytes = lambda device: None if device.type == NAME else real_peak(device)
    torch.cuda.mem_get_info = lambda _: (64 << 30, 80 << 30)  # in the forecast


install()
