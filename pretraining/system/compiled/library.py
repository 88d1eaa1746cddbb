"""Machine code of a unit: its file format, its loading by LLVM, and calls that release Python's lock.

The calling convention is Numba's: pointers to the result and to an exception, then each array as seven numbers
(owner and parent, both null; elements, bytes per element, address, shape, stride), and a tuple as its fields.
"""

import ctypes
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pretraining.system.compiled.unit import CompiledError, element_dtype, flattened, layout, parameters

DIGEST_BYTES = 64  # of SHA-256, in hex
Symbols = dict[str, tuple[str, str]]  # for each entry its name in the machine code, and the layout of its arguments


def pack(symbols: Symbols, machine_code: bytes) -> bytes:
    """The content of a cache file: a checksum, the entries, and the machine code."""
    content = json.dumps(symbols).encode() + b"\n" + machine_code
    return hashlib.sha256(content).hexdigest().encode() + content


def unpack(content: bytes) -> tuple[Symbols, bytes]:
    """Entries and machine code of a cache file.

    Raises:
        CompiledError: when it is damaged.
    """
    digest, rest = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise CompiledError("the file is damaged")
    header, _, machine_code = rest.partition(b"\n")
    return {entry: (symbol, arguments) for entry, (symbol, arguments) in json.loads(header).items()}, machine_code


class CompiledFunction:
    """A function as machine code; several threads may call it at once, each with its own arrays."""

    def __init__(self, function: Callable[..., int], engine: Any, symbol: str) -> None:
        self.name = function.__name__
        self._engine = engine  # the machine code is freed with it
        self._dtypes = [element_dtype(annotation) for annotation in flattened(parameters(function))]
        self._types = list(flattened(parameters(function)))
        self._call = ctypes.CFUNCTYPE(ctypes.c_int32)(engine.get_function_address(symbol))

    def __call__(self, *arguments: Any) -> int:
        """The result of the Python function of the same name.

        Raises:
            TypeError: when an argument does not have the type of its annotation.
        """
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        values = _flat(arguments)
        if len(values) != len(self._types):
            raise TypeError(f"{self.name} takes {len(self._types)} numbers and arrays, not {len(values)}")
        words: list[Any] = [ctypes.byref(result), ctypes.byref(exception)]
        for value, annotation, dtype in zip(values, self._types, self._dtypes, strict=True):
            words += [_number(value, annotation)] if dtype is None else self._array(value, dtype)
        status = self._call(*words)
        if status:
            raise RuntimeError(f"{self.name} ended with status {status}")
        return result.value

    def _array(self, value: np.ndarray, dtype: np.dtype) -> list[Any]:
        if value.dtype != dtype or value.ndim != 1 or not value.flags.c_contiguous:
            raise TypeError(f"{self.name} takes a contiguous array of {dtype}, not of {value.dtype} {value.shape}")
        size, item = ctypes.c_int64(value.size), ctypes.c_int64(value.itemsize)
        null = ctypes.c_void_p()
        return [null, null, size, item, ctypes.c_void_p(value.ctypes.data), size, item]


def _flat(arguments: tuple[Any, ...]) -> list[Any]:
    values = []
    for argument in arguments:
        values += _flat(argument) if isinstance(argument, tuple) else [argument]
    return values


def _number(value: Any, annotation: Any) -> Any:
    return ctypes.c_double(value) if annotation is float else ctypes.c_int64(value)


class CompiledLibrary:
    """The functions of a unit, loaded into this process."""

    def __init__(self, content: bytes, functions: list[Callable[..., int]]) -> None:
        try:
            from llvmlite import binding  # here: a library of 170 MB
        except (ImportError, OSError) as error:
            raise CompiledError(f"llvmlite cannot be used ({error})") from None
        symbols, machine_code = unpack(content)
        if any(symbols[function.__name__][1] != layout(function) for function in functions):
            raise CompiledError("the files of this program changed while it ran; start it again")
        try:
            binding.initialize_native_target()
            binding.initialize_native_asmprinter()
            machine = binding.Target.from_default_triple().create_target_machine()
            engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
            engine.add_object_file(binding.object_file.ObjectFileRef.from_data(machine_code))
            engine.finalize_object()
        except RuntimeError as error:
            raise CompiledError(f"LLVM cannot load them ({error})") from None
        self._functions = {
            function.__name__: CompiledFunction(function, engine, symbols[function.__name__][0])
            for function in functions
        }

    def __getitem__(self, name: str) -> CompiledFunction:
        return self._functions[name]
