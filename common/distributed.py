"""The processes of a run: which one prints and writes, and how many there are."""

import os

from tunebook.common.errors import UserError


def is_main_process() -> bool:
    """Whether this is the process of a run that prints and writes; the only one, where there is one."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Processes in this run. Refuses where more were asked for than there are: some launchers start one, silently."""
    import torch

    asked = int(os.environ.get("WORLD_SIZE", "1"))
    found = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if asked != found:
        raise UserError(f"{asked} processes were asked for and {found} run; use torchrun --nproc_per_node {asked}")
    return found
