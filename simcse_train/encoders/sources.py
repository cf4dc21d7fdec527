"""Where an encoder's files are, and what is wrong with them when they cannot be loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from transformers.utils.hub import cached_file

from simcse_train.config import STARTER
from simcse_train.encoders.modules import MODULES
from simcse_train.encoders.saving import ENCODER
from simcse_train.errors import InputError, one_line
from simcse_train.manifest import MANIFEST, STATE, damage

STARTER_FOLDER = Path(__file__).parent.parent / "starter"
ADAPTER = "adapter_config.json"
USUAL = ("model", "encoder", "checkpoint", "best", "last")  # names of folders that do not say which model is in them


def model_name(source: str) -> str:
    """Return what to call a model: the name of its folder, with that of the parent folder if the name says nothing."""
    path = Path(source)
    return "/".join(path.parts[-2:]) if path.name in USUAL and path.parent.name else path.name


class Source:
    """The files of an encoder: those of a folder, or of a name on the Hugging Face hub."""

    def __init__(self, name: str) -> None:
        """Find the files behind a name; raises `InputError` if there are none."""
        self.name = name
        self.place = _find(name)
        self.is_folder = Path(self.place).is_dir()
        self.local_only = self.is_folder or not _hub_answers(self.place)
        self.transformer = ""  # the sub-folder with the model

    @property
    def arguments(self) -> dict[str, object]:
        """What every `from_pretrained` is called with: no code that comes with a model is ever run."""
        subfolder = {"subfolder": self.transformer} if self.transformer else {}
        return {"trust_remote_code": False, "local_files_only": self.local_only, **subfolder}

    def find(self, name: str) -> Path | None:
        """Return the local path of a file, or None where there is none."""
        if self.is_folder:
            path = Path(self.place) / name
            return path if path.is_file() else None
        found = cached_file(
            self.place,
            name,
            local_files_only=self.local_only,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    def find_of_model(self, name: str) -> Path | None:
        """Return the local path of a file beside the model's weights, or None where there is none."""
        return self.find(f"{self.transformer}/{name}" if self.transformer else name)

    def refuse_adapter(self) -> None:
        """Raise `InputError` if the folder holds an adapter, such as LoRA, which changes another model's weights."""
        if not (self.find(ADAPTER) or self.find_of_model(ADAPTER)):
            return
        raise InputError(
            f"The encoder {self.name} is an adapter, which changes the weights of another model. Merge it into that "
            "model and give the merged folder: pip install peft, then "
            """python -c "from peft import AutoPeftModelForFeatureExtraction as M; """
            """from transformers import AutoTokenizer as T; """
            f"""m = M.from_pretrained('{self.name}'); b = m.peft_config['default'].base_model_name_or_path; """
            """m.merge_and_unload().save_pretrained('merged'); T.from_pretrained(b).save_pretrained('merged')\""""
        )

    def explain(self, error: BaseException) -> InputError:
        """Return the error that says why the files cannot be loaded, and what to do."""
        reason = f"{type(error).__name__}: " + (one_line(error) or "no reason is given")
        if not self.is_folder and self.local_only:
            return InputError(
                f"The encoder {self.name} is neither a folder here nor in the local Hugging Face cache, and the hub "
                f"can't be reached. Give the path of a downloaded model, go online, or use the bundled one, {STARTER}."
            )
        known = self._missing_weights() or self._missing_tokenizer()
        if known is not None:
            return known
        has_weights = self.find_of_model("model.safetensors") or self.find_of_model("model.safetensors.index.json")
        return InputError(
            f"The encoder {self.name} can't be loaded or used as an encoder ({reason}). "
            + ("" if has_weights else "Weights must be safetensors files. ")
            + f"Check the {'folder' if self.is_folder else 'name'}, or use the bundled encoder, {STARTER}."
        )

    def _missing_weights(self) -> InputError | None:
        if any(self.find_of_model(f"model.safetensors{end}") for end in ("", ".index.json")):
            return None
        if self.is_folder and any(Path(self.place).glob("onnx/*.onnx")):
            return InputError(
                f"The encoder {self.name} is an export to ONNX, without the weights that are read here. Give the run "
                "or the model that it was exported from."
            )
        pickled = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if self.find_of_model(name)]
        if not pickled:
            return None
        folder = str(Path(self.place) / self.transformer) if self.is_folder else "FOLDER"
        first = "" if self.is_folder else f"hf download {self.name} --local-dir FOLDER, then "
        return InputError(
            f"The encoder {self.name} has its weights in {pickled[0]} alone, a pickle, and only safetensors files are "
            f"read here. Convert it with one line: {first}"
            """python -c "from transformers import AutoModel; """
            f"""AutoModel.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""""
        )

    def _missing_tokenizer(self) -> InputError | None:
        if self.find_of_model("tokenizer.json"):
            return None
        pieces = [
            name for name in ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model") if self.find_of_model(name)
        ]
        missing = [module for module in ("sentencepiece", "google.protobuf") if not _is_installed(module)]
        if not pieces or not missing:
            return None
        return InputError(
            f"The encoder {self.name} has a SentencePiece tokenizer ({pieces[0]}), which needs packages that are not "
            'installed. Run pip install "simcse-train[sentencepiece]".'
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _find(name: str) -> str:
    """Return the folder behind a name, or the name itself where it is one of Hugging Face's."""
    if name == STARTER:
        return str(STARTER_FOLDER)
    path = Path(name).expanduser()
    for folder in (path, path / ENCODER):
        if any((folder / file).is_file() for file in ("config.json", MODULES, ADAPTER)):
            is_checkpoint = folder != path and any((path / file).exists() for file in (MANIFEST, STATE))
            if is_checkpoint and (reason := damage(path)):
                raise InputError(f"The checkpoint {name} can't be used: {reason}. Give another one, or the run folder.")
            return str(folder)
    if path.exists():
        raise InputError(
            f"The folder {name} holds no encoder: there is no config.json in it. Give the folder that save_pretrained "
            "or simcse-train wrote."
        )
    if len(path.parts) > 2 or path.is_absolute() or name.startswith((".", "~")):
        raise InputError(
            f"The encoder {name}: there is no such folder. Check the path, or use the bundled encoder, {STARTER}."
        )
    return name


def _hub_answers(name: str) -> bool:
    """Return whether the hub can be asked. One short question spares the user a minute of retries."""
    try:
        HfApi().model_info(name, timeout=5)
    except RepositoryNotFoundError:
        return True
    except Exception:  # whatever keeps the hub from answering: no network, a proxy, offline mode
        return False
    return True
