"""Call the kernels from Python: arguments by the names that they have in the kernels' source."""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.build import SOURCES, CannotCompile, compiled_file

STATES = {torch.bfloat16: "bf16", torch.float32: "float"}  # the types of states that kernels are compiled for
SCALARS = {"int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32, "float": ctypes.c_float}


@dataclass(frozen=True)
class Library:
    """The loaded kernels, and the structure of arguments that each takes; `name` changes with the code."""

    name: str
    handle: ctypes.CDLL
    arguments: dict[str, type[ctypes.Structure]]

    def run(self, kernel: str, states: torch.dtype, **arguments: Any) -> None:
        """Run a kernel for states of a type, float32 where it has none; tensors are passed by address, None as null.

        Raises `TypeError` if the names are not those of the kernel's structure.
        """
        structure = _filled(self.arguments[kernel], {"threads": torch.get_num_threads(), **arguments})
        getattr(self.handle, f"{kernel}_{STATES[states]}")(ctypes.byref(structure))

    def attention_scratch(self, longest: int, size: int) -> int:
        """Return how many floats a thread needs for attention over `longest` tokens with heads of `size`."""
        return int(self.handle.attention_scratch(ctypes.c_int64(longest), ctypes.c_int64(size)))


@functools.cache
def library() -> Library:
    """Return the kernels, compiled if need be; raises `CannotCompile`."""
    return load(compiled_file())


def load(path: Path) -> Library:
    """Load a compiled file; raises `CannotCompile` if it does not fit this process."""
    for threads in _thread_libraries()[:1]:
        ctypes.CDLL(str(threads), mode=ctypes.RTLD_GLOBAL)  # so that the kernels find its functions
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotCompile(f"{' '.join(str(error).split())[:200]}") from None
    handle.attention_scratch.restype = ctypes.c_int64
    return Library(
        path.stem[:12],
        handle,
        read_arguments("\n".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.h"))),
    )


def read_arguments(source: str) -> dict[str, type[ctypes.Structure]]:
    """Return the structure of arguments of each kernel that the source exports, as ctypes knows it."""
    bodies = dict(re.findall(r"^struct (\w+) \{\n(.*?)^\};", source, re.MULTILINE | re.DOTALL))

    @functools.cache
    def structure(name: str) -> type[ctypes.Structure]:
        # One field a line, or several with one type: `const float* bias;  // what it is`.
        found = re.findall(r"^    (?:const )?(\w+)(\*?) ([\w, ]+);", bodies[name], re.MULTILINE)
        fields = [
            (field, ctypes.c_void_p if pointer else SCALARS.get(kind) or structure(kind))
            for kind, pointer, names in found
            for field in names.split(", ")
        ]
        return type(name, (ctypes.Structure,), {"_fields_": fields})

    kernels = re.findall(r"^EXPORT(?:_ONE)?\((\w+), (\w+)\)", source, re.MULTILINE)
    return {kernel: structure(name) for kernel, name in kernels}


def _filled(structure: type[ctypes.Structure], given: dict[str, Any]) -> ctypes.Structure:
    """Return a structure whose fields, those of structures in it included, have the given values."""
    left = dict(given)

    def fill(kind: type[ctypes.Structure]) -> ctypes.Structure:
        made = kind()
        for name, of in kind._fields_:  # type: ignore[misc]
            if isinstance(of, type) and issubclass(of, ctypes.Structure) and name not in left:
                value: Any = fill(of)
            else:
                value = left.pop(name)
            setattr(made, name, value.data_ptr() if isinstance(value, Tensor) else value)
        return made

    try:
        made = fill(structure)
    except KeyError as error:
        raise TypeError(f"{structure.__name__}: {error} is missing") from None
    if left:
        raise TypeError(f"{structure.__name__} has no {', '.join(left)}")
    return made


def _thread_libraries() -> list[Path]:
    """Return the OpenMP libraries that are loaded, torch's own copy first: other packages may bring one, too."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if line.count("/") > 1}
        named = [Path(path) for path in sorted(paths) if re.search(r"/lib(gomp|omp|iomp)[^/]*\.so", path)]
        return sorted((path for path in named if path.exists()), key=lambda path: "/torch" not in str(path))
    return sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.dylib"))
