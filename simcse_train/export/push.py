"""Upload of an export to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from simcse_train.errors import InputError, SaveError, one_line
from simcse_train.export.model_card import HUB_NAME
from simcse_train.version import __version__


def check_hub(name: str) -> None:
    """Raise `InputError` if nothing can be uploaded as the model `name`: a wrong name, no login, or no hub."""
    if not re.fullmatch(HUB_NAME, name):
        raise InputError(f"--push {name} is no name of a model. Give USER/NAME.")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError:
        raise InputError(f"--push {name}: you are not logged in to the hub. Run hf auth login first.") from None
    except HfHubHTTPError as error:
        raise InputError(f"--push {name}: the hub refused your login ({_reason(error)}). Run hf auth login.") from None
    except Exception as error:  # whatever keeps the hub from answering: no network, a proxy, offline mode
        raise InputError(
            f"--push {name}: the hub can't be reached ({type(error).__name__}: {_reason(error)}). Export without "
            f"--push now, and upload the folder when you are online: hf upload {name} FOLDER."
        ) from None


def push(folder: Path, name: str) -> str:
    """Upload a folder as the model `name`, which becomes a private one if it is new; return its address.

    Raises `SaveError` if that fails; the folder stays as it is.
    """
    try:
        url = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=f"Upload by simcse-train {__version__}"
        )
    except Exception as error:  # of the network, the hub or its client
        raise SaveError(
            f"{folder} is complete, but it could not be uploaded as {name} ({type(error).__name__}: {_reason(error)}). "
            f"To try again: hf upload {name} {folder}."
        ) from None
    return str(url)


def _reason(error: Exception) -> str:
    return one_line(error)
