"""The trackers that --report_to takes, and whether one can be used here. tracking.py writes to them."""

import importlib.util
import netrc
import os

from tunebook.common.errors import UserError, nearest

FOLDERS = {name: name for name in ("tensorboard", "wandb", "trackio")}  # in the run's folder, which hold all of it
TRACKERS = ("none", *FOLDERS)


# Fields of a trainer's config that only a tracker reads -> which.
READ = dict.fromkeys(("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), ("trackio",))
READ |= {"run_name": ("wandb", "trackio")}


def unheard(name: str) -> dict[str, str]:
    """Those that nothing reads beside this tracker -> what does."""
    return {field: f"--report_to {' or '.join(who)} reads it" for field, who in READ.items() if name not in who}


def check(name: str) -> None:
    """Raise UserError where there is no such tracker, it is not installed, or it would ask for a key that nobody can
    type."""
    if name not in TRACKERS:
        raise UserError(f"--report_to {name}: there is {', '.join(TRACKERS)}{nearest(name, TRACKERS)}")
    if name == "none":
        return
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f'--report_to {name}: it is not installed: pip install "tunebook[{name}]". Or leave the flag out'
        )
    offline = os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun")
    if name == "wandb" and not offline and "WANDB_API_KEY" not in os.environ and not _logged_in():
        raise UserError(
            "--report_to wandb: there is no key for it: wandb login, or WANDB_API_KEY=...; WANDB_MODE=offline keeps "
            "the run on this machine"
        )


def _logged_in() -> bool:
    """Whether `wandb login` has left a key, for any of its servers."""
    try:
        return any("wandb" in host for host in netrc.netrc().hosts) or "WANDB_BASE_URL" in os.environ
    except (OSError, netrc.NetrcParseError):
        return False
