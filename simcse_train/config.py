"""The settings of a run, each declared once.

`TrainConfig` holds type, default, help text and group of every setting. The command line is made from it, and so are
the keys of a YAML file. The defaults are those of the paper for unsupervised BERT (Gao, Yao & Chen 2021, appendix A).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic.functional_validators import field_validator, model_validator

from simcse_train.errors import InputError

STARTER = "starter"
LEARNING_RATE = 3e-5
TEMPERATURE = 0.05
PART = "part"  # says to pydantic that settings are to be completed by others

TEXT, ENCODER, OBJECTIVE = "Text", "Encoder", "Objective"
OPTIMISATION, EVALUATION, SAVING = "Optimisation", "Evaluation", "Saving"


def _setting(
    group: str,
    help_text: str,
    metavar: str = "",
    *,
    auto: str = "",
    default: Any = None,
    of: Mapping[str, float] | None = None,
) -> Any:
    """Declare a setting: its group and help on the command line; `auto` explains a default of None or auto.

    `of` is for a setting that only some objectives have: their names, each with the value that it takes by default.
    """
    auto = auto or ", ".join(f"{value:g} for {name}" for name, value in (of or {}).items())
    extra: dict[str, Any] = {"group": group, "metavar": metavar, "auto": auto, "of": dict(of or {})}
    return Field(default=default, description=help_text, json_schema_extra=extra)


def _as_list(value: object) -> object:
    if not isinstance(value, str | Path | list | tuple):
        raise ValueError("give a name or a list of names; sentences and tables are read from files")
    return [str(e) if isinstance(e, Path) else e for e in ([value] if isinstance(value, str | Path) else value)]


Paths = Annotated[list[str], BeforeValidator(_as_list)]
Trackers = Annotated[list[Literal["tensorboard", "wandb", "mlflow", "trackio"]], BeforeValidator(_as_list)]
Unit = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """Every setting of a training run; the names are those of the command line's options."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    data: Paths = _setting(
        TEXT,
        "Text to learn from: file, folder, glob, hf://datasets/OWNER/NAME, or - for standard input.",
        "PATH",
        auto="none with --pairs",
        default=[],
    )
    pairs: str | None = _setting(
        TEXT, "Pairs to learn from: anchor, positive and, if you have it, hard negative; alone or with --data.", "FILE"
    )
    text_column: str | None = _setting(
        TEXT, "Column with the sentences, of csv, tsv, JSON, parquet or Arrow.", "NAME", auto="the only one with text"
    )
    encoding: str | None = _setting(
        TEXT,
        "Encoding of the text, such as gb18030 or cp1252; also of --pairs and --eval where they are not UTF-8.",
        "NAME",
        auto="UTF-8, or what the text itself shows",
    )
    max_length: Annotated[int, Field(ge=3)] = _setting(TEXT, "Tokens after which a sentence is cut.", "N", default=32)

    model: str = _setting(
        ENCODER,
        "Hugging Face encoder, a name or a folder.",
        "NAME_OR_PATH",
        auto="the bundled starter",
        default=STARTER,
    )
    pooling: Literal["auto", "cls", "mean", "last"] = _setting(
        ENCODER,
        "How the states of the tokens become one embedding.",
        auto="auto, what the model's files say, else cls, or mean where the tokenizer puts no token first",
        default="auto",
    )
    projection: Literal["auto", "on", "off"] = _setting(
        ENCODER, "Projection head: linear layer and tanh, in training only.", auto="auto, on for cls", default="auto"
    )
    dropout: Unit | None = _setting(ENCODER, "Dropout of hidden states and attention.", "P", auto="the model's own")

    objective: Literal["auto", "ntxent", "infonce", "debiased", "soft", "relational", "neighbours", "queue"] = _setting(
        OBJECTIVE, "Loss on the text; infonce is the paper's.", auto="auto, what suits encoder and text", default="auto"
    )
    temperature: Positive | None = _setting(
        OBJECTIVE, "Temperature of the loss; it divides the cosines.", "X", auto="0.05, less where all cosines are high"
    )
    view: Literal["dropout", "repetition"] = _setting(
        OBJECTIVE, "What makes two views of a sentence differ: dropout alone, or repeated words too.", default="dropout"
    )
    mask_similar: Annotated[float, Field(gt=0, lt=1)] | None = _setting(
        OBJECTIVE, "Leave out negatives above this quantile of the cosines before training, e.g. 0.99.", "Q", auto="off"
    )
    start_weight: Share | None = _setting(
        OBJECTIVE, "Share of the loss with targets from before training.", "X", of={"relational": 0.5, "soft": 1}
    )
    start_temperature: Positive | None = _setting(
        OBJECTIVE, "Temperature of the targets from before training.", "X", of={"relational": 0.1, "soft": 0.04}
    )
    neighbours: Annotated[int, Field(ge=0, le=100)] | None = _setting(
        OBJECTIVE, "Nearest neighbours to use for each sentence.", "K", of={"relational": 5, "soft": 0, "neighbours": 5}
    )
    tau_plus: Unit | None = _setting(
        OBJECTIVE, "Assumed share of sentences that mean the same as a given one.", "P", of={"debiased": 0.1}
    )
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = _setting(
        OBJECTIVE, "How much more hard negatives weigh; 0: no more.", "X", of={"debiased": 0}
    )
    queue_size: Count | None = _setting(
        OBJECTIVE, "Sentences of past batches as further negatives.", "N", auto="2.5 batches for queue", of={"queue": 0}
    )
    momentum: Unit | None = _setting(
        OBJECTIVE, "Momentum of the slow encoder that fills the queue.", "X", of={"queue": 0.995}
    )

    epochs: Count | None = _setting(
        OPTIMISATION, "Passes through the text.", "N", auto="1; with a few pairs alone, enough for 40 steps"
    )
    max_steps: Count | None = _setting(OPTIMISATION, "Stop after this many steps, whatever --epochs says.", "N")
    batch_size: Annotated[int, Field(ge=2)] = _setting(OPTIMISATION, "Sentences in a batch.", "N", default=64)
    micro_batch_size: Count | None = _setting(
        OPTIMISATION,
        "Sentences computed at once, to save memory; the gradients are those of the whole batch.",
        "N",
        auto="the whole batch",
    )
    learning_rate: Positive | None = _setting(
        OPTIMISATION,
        "Highest learning rate; it falls linearly to 0.",
        "X",
        auto="3e-5, less in a long run of a tuned encoder on general text",
    )
    warmup_ratio: Unit = _setting(OPTIMISATION, "Share of the steps with a rising learning rate.", "X", default=0.0)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _setting(
        OPTIMISATION, "AdamW's weight decay; only matrices decay.", "X", default=0.0
    )
    max_grad_norm: Positive = _setting(OPTIMISATION, "Gradients are clipped to this norm.", "X", default=1.0)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = _setting(
        OPTIMISATION, "Seed of the order, of dropout and of a new head.", "N", default=42
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _setting(
        OPTIMISATION, "Number format of the encoder's arithmetic.", auto="auto, the device's fastest", default="auto"
    )
    kernels: Literal["auto", "compile", "off"] = _setting(
        OPTIMISATION,
        "Compute with kernels that the system's C++ compiler makes; compile: with torch.compile, on a GPU.",
        auto="auto, on a CPU where they fit",
        default="auto",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = _setting(
        OPTIMISATION, "Where to train.", auto="auto, a GPU if there is one", default="auto"
    )

    eval: str | None = _setting(
        EVALUATION, "Labelled pairs to score while training; the best checkpoint is kept.", "PATH"
    )
    patience: Count | None = _setting(
        EVALUATION,
        "Stop after this many evaluations in a row without improvement: of the score of --eval, or, without --eval, "
        "of the verdict.",
        "N",
        auto="never",
    )
    eval_every: Count = _setting(EVALUATION, "Steps between evaluations.", "N", default=250)

    output: str | None = _setting(SAVING, "Folder to write the run to.", "DIR", auto="runs/<model>-<date>-<time>")
    save_every: Count = _setting(SAVING, "Steps between checkpoints.", "N", default=500)
    save_minutes: Positive | None = _setting(SAVING, "Minutes between checkpoints, in addition to --save-every.", "M")
    keep: Count = _setting(SAVING, "Newest checkpoints to keep, in addition to the best.", "N", default=2)
    log_every: Count = _setting(SAVING, "Steps between lines of metrics.jsonl.", "N", default=10)
    track: Trackers = _setting(
        SAVING, "Experiment tracker for the metrics too.", "tensorboard|wandb|mlflow|trackio", auto="none", default=[]
    )

    @model_validator(mode="before")
    @classmethod
    def _settings_are_known(cls, given: Any) -> Any:
        """Refuse a name that is none of a setting, with the nearest that is."""
        if unknown := [str(name) for name in given if name not in cls.model_fields] if isinstance(given, dict) else []:
            near = difflib.get_close_matches(unknown[0].replace("-", "_"), cls.model_fields, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"The settings are {', '.join(cls.model_fields)}."
            raise ValueError(f"There is no setting {unknown[0]!r}. {hint}")
        return given

    @field_validator("model", "pairs", "eval", "output", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        """Take a path as Python programs have it, but not an empty one, as of a variable that is not set."""
        if value == "":
            raise ValueError("an empty name; name a file or folder, or leave it out")
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _settings_fit_together(self, info: ValidationInfo) -> TrainConfig:
        """Refuse a setting that the others make meaningless."""
        if info.context == PART:
            return self
        if not self.data and not self.pairs:
            raise ValueError("--data is missing: name the text to learn from, for example --data corpus.txt.")
        for name, field in type(self).model_fields.items():
            objectives = _extra(field)["of"]
            if objectives and getattr(self, name) is not None and self.objective not in objectives:
                raise ValueError(
                    f"{option(name)} {getattr(self, name)} is for --objective {' or '.join(objectives)}, and the "
                    f"objective is {self.objective}. Leave it out, or choose such an objective."
                )
        if self.objective == "neighbours" and self.neighbours == 0:
            raise ValueError("--neighbours 0: --objective neighbours needs at least 1.")
        if self.objective == "neighbours" and self.view != "dropout":
            raise ValueError(f"--view {self.view} does not combine with --objective neighbours. Leave one of them out.")
        if self.objective == "relational" and self.start_weight == 1 and not self.pairs:
            for name in ("temperature", "mask_similar"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{option(name)} {getattr(self, name)} is for NT-Xent, of which --objective relational takes "
                        "nothing at --start-weight 1. Leave it out, or lower that."
                    )
        if not self.data:
            for name, values in (("objective", ("auto", "infonce")), ("view", ("dropout",)), ("text_column", (None,))):
                if getattr(self, name) not in values:
                    raise ValueError(
                        f"{option(name)} {getattr(self, name)} is for the text of --data, and there are only --pairs, "
                        "which are trained with the paper's supervised objective. Leave it out, or name a text."
                    )
        if self.patience is not None and self.pairs and not self.eval:
            raise ValueError(
                f"--patience {self.patience}: what --pairs ask for may change a text's neighbours, so that only "
                "labelled pairs can say whether the encoder still improves. Name them with --eval, or leave it out."
            )
        return self


def objective_setting(config: TrainConfig, name: str) -> float:
    """Return the temperature, or a setting that only some objectives have: as given, else the objective's default."""
    given = getattr(config, name)
    return default_of(name, config.objective) if given is None else float(given)


def default_of(name: str, objective: str) -> float:
    """Return what `objective_setting` does where nothing is given."""
    return TEMPERATURE if name == "temperature" else float(_extra(TrainConfig.model_fields[name])["of"][objective])


def _extra(field: FieldInfo) -> dict[str, Any]:
    return cast(dict[str, Any], field.json_schema_extra)


def option(field: str) -> str:
    """Return the command line's name of a setting: `max_steps` is `--max-steps`."""
    return "--" + field.replace("_", "-")


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values that a setting may have, or nothing where any value of its type will do."""
    return tuple(argument for argument in get_args(field.annotation) if isinstance(argument, str))


def _explain(error: ValidationError) -> str:
    """Return one sentence on the first fault that pydantic found."""
    found = error.errors()[0]
    message: str = found["msg"].removeprefix("Value error, ")
    if not found["loc"]:  # from the checks of all settings together
        return message
    given = "''" if found["input"] == "" else found["input"]
    return f"{option(str(found['loc'][0]))} {given}: {message[0].lower()}{message[1:]}."


def make_config(settings: Mapping[str, Any], source: str | None = None, *, complete: bool = True) -> TrainConfig:
    """Validate settings.

    Raises `InputError` with the option, the value and what is allowed; `source` names the file they come from. Whether
    they fit together is seen where they are `complete`.
    """
    try:
        return TrainConfig.model_validate(dict(settings), context=None if complete else PART)
    except ValidationError as error:
        raise InputError((f"{source}: " if source else "") + _explain(error)) from None
