"""Call the kernels from Python: arguments by the names that they have in the kernels' source."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.build import SOURCES, CannotCompile, compiled_file
from simcse_train.errors import one_line

STATES = {torch.bfloat16: "bf16", torch.float32: "float"}  # the types of states that kernels are compiled for
SCALARS = {"int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32, "float": ctypes.c_float}
CODES = {ctypes.c_int64: "q", ctypes.c_uint32: "I", ctypes.c_float: "f", ctypes.c_void_p: "Q"}  # of `struct`

_at_work = threading.Lock()  # whoever needs the kernels waits for the thread that compiles them


@dataclass(frozen=True)
class ArgumentLayout:
    """How a structure of arguments lies in memory: its fields, those of structures in it included, in their order."""

    name: str
    fields: tuple[str, ...]
    layout: struct.Struct

    def pack(self, given: dict[str, Any]) -> bytes:
        """Return the structure in which each field has the value of its name; raises `TypeError` for other names."""
        if given.keys() != set(self.fields):
            missing, unknown = set(self.fields) - given.keys(), given.keys() - set(self.fields)
            raise TypeError(f"{self.name}: {sorted(missing)} missing, {sorted(unknown)} unknown")
        return self.layout.pack(*[_number(given[field]) for field in self.fields])


@dataclass(frozen=True)
class Library:
    """The loaded kernels, and the structure of arguments that each takes; `name` changes with the code."""

    name: str
    handle: ctypes.CDLL
    arguments: dict[str, ArgumentLayout]

    def run(self, kernel: str, states: torch.dtype, **arguments: Any) -> None:
        """Run a kernel for states of a type, float32 where it has none; tensors are passed by address, None as null.

        Raises `TypeError` if the names are not those of the kernel's structure.
        """
        packed = self.arguments[kernel].pack({"threads": torch.get_num_threads(), **arguments})
        getattr(self.handle, f"{kernel}_{STATES[states]}")(packed)

    def attention_scratch(self, longest: int, size: int) -> int:
        """Return how many floats a thread needs for attention over `longest` tokens with heads of `size`."""
        return int(self.handle.attention_scratch(ctypes.c_int64(longest), ctypes.c_int64(size)))


def library() -> Library:
    """Return the kernels, compiled if need be; raises `CannotCompile`."""
    with _at_work:
        return _library()


@functools.cache
def _library() -> Library:
    return load(compiled_file())


def compile_meanwhile() -> None:
    """Compile the kernels in a thread if need be; `library` waits for it, and says what went wrong."""

    def make() -> None:
        with contextlib.suppress(CannotCompile):
            library()

    threading.Thread(target=make, name="compile").start()


def load(path: Path) -> Library:
    """Load a compiled file; raises `CannotCompile` if it does not fit this process."""
    for threads in _thread_libraries()[:1]:
        ctypes.CDLL(str(threads), mode=ctypes.RTLD_GLOBAL)  # so that the kernels find its functions
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotCompile(one_line(error)) from None
    handle.attention_scratch.restype = ctypes.c_int64
    return Library(
        path.stem[:12],
        handle,
        read_arguments("\n".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.h"))),
    )


def read_arguments(source: str) -> dict[str, ArgumentLayout]:
    """Return the structure of arguments of each kernel that the source exports."""
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
    return {kernel: _packing(structure(name)) for kernel, name in kernels}


def _packing(structure: type[ctypes.Structure]) -> ArgumentLayout:
    """Return how a structure lies in memory, gaps between its fields included."""

    def flat(kind: Any, begin: int) -> Iterator[tuple[str, int, Any]]:
        for name, of in kind._fields_:
            at = begin + getattr(kind, name).offset
            if issubclass(of, ctypes.Structure):
                yield from flat(of, at)
            else:
                yield name, at, of

    found = list(flat(structure, 0))
    ends = [0, *(at + ctypes.sizeof(of) for _, at, of in found)]
    gaps = [at - end for (_, at, _), end in zip(found, ends[:-1], strict=True)]
    codes = [f"{gap}x{CODES[of]}" for gap, (_, _, of) in zip(gaps, found, strict=True)]
    layout = struct.Struct(f"={''.join(codes)}{ctypes.sizeof(structure) - ends[-1]}x")
    return ArgumentLayout(structure.__name__, tuple(name for name, _, _ in found), layout)


def _number(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else 0 if value is None else value


def _thread_libraries() -> list[Path]:
    """Return the OpenMP libraries that are loaded, torch's own copy first: other packages may bring one, too."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if line.count("/") > 1}
        named = [Path(path) for path in sorted(paths) if re.search(r"/lib(gomp|omp|iomp)[^/]*\.so", path)]
        return sorted((path for path in named if path.exists()), key=lambda path: "/torch" not in str(path))
    return sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.dylib"))
