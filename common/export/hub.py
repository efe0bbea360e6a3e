"""An export on the Hugging Face Hub, private unless asked otherwise."""

import re
from pathlib import Path
from typing import Any

from tunebook.common.errors import UserError

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def check(name: str) -> None:
    """Whether something can be pushed at all, before anything is made.

    Raises:
        UserError: the name is none, or nobody is logged in.
    """
    from huggingface_hub import get_token

    if not NAME.fullmatch(name) or "--" in name or ".." in name:
        raise UserError(f"--push_to_hub {name}: name it as ORG/NAME, of letters, digits, -, _ and .")
    if not get_token():
        raise UserError("--push_to_hub: nobody is logged in; `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str, public: bool) -> str:
    """Upload the folder as one commit; its address.

    Raises:
        UserError: the Hub refuses; the export stays on the disk.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        made: Any = api.create_repo(name, private=not public, exist_ok=True)
        if not public and api.repo_info(made.repo_id).private is False:  # it was there before
            raise UserError(
                f"--push_to_hub {name}: it is public already; --public, or another name; the export stays in {folder}"
            )
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Model exported by tunebook, with its proof"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise UserError(
            f"--push_to_hub {name}: {said[-1] if said else error!r}; the export stays in {folder}"
        ) from error
    return str(made)
