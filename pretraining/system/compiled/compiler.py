"""Compile a unit in a separate process, and write machine code and names to standard output.

    python3 -m pretraining.system.compiled.compiler MODULES ENTRIES PARENT     names separated by commas, a process

In a separate process because Numba takes Python's lock for seconds, and because LLVM ends the process at an error.
Numba translates the functions to LLVM's language; all that is taken from it is one function per entry, which calls
nothing of Python. So whoever loads the machine code needs LLVM, and Numba not (0.2 s less).
"""

import importlib
import os
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from pretraining.system.compiled.library import Symbols, pack
from pretraining.system.compiled.unit import CPU_VARIABLES, CompiledError, element_dtype, fields, layout, parameters
from pretraining.system.compiled.words import prefetch
from pretraining.system.processes import end_with_parent

# Without reference counts: arrays are only borrowed. A wrong index is found by tests that run the same code in Python.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
MAX_REASON_CHARACTERS = 300  # Numba writes pages
FROM_C = {"memcpy", "memset", "memmove", "memcmp", "bcmp"}  # which LLVM calls where a loop does the same


def compile_unit(modules: list[str], entries: list[str]) -> bytes:
    """The content of a cache file for these functions.

    Raises:
        CompiledError: when a function needs Python while it runs.
    """
    from llvmlite import binding

    imported = [importlib.import_module(name) for name in modules]
    functions = translate(imported)
    unit = binding.parse_assembly("")
    symbols: Symbols = {}
    for entry in entries:
        symbol, text = assembly(functions[entry])
        symbols[entry] = (symbol, layout(functions[entry].py_func))
        part = binding.parse_assembly(text)
        unit.link_in(part)
    keep_only(unit, {symbol for symbol, _ in symbols.values()})
    needed = {each.name for each in unit.functions if each.is_declaration and not each.name.startswith("llvm.")}
    if needed - FROM_C:
        raise CompiledError(f"these functions need Python: {', '.join(sorted(needed - FROM_C))}")
    return pack(symbols, target_machine().emit_object(unit))


def translate(modules: list[ModuleType]) -> dict[str, Any]:
    """Put a Numba function in the place of each function of the modules, in the modules themselves."""
    from numba import njit

    names = {module.__name__ for module in modules}
    found: dict[FunctionType, Any] = {}
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and value.__module__ in names:
                found.setdefault(value, make_prefetch() if value is prefetch else njit(**OPTIONS)(value))
                setattr(module, name, found[value])
    return {function.__name__: translated for function, translated in found.items()}


def make_prefetch() -> Any:
    """Numba's form of `prefetch`; see LLVM's reference on its intrinsic: a read, kept in all caches, of data."""
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    read, all_caches, data_cache = (ir.IntType(32)(number) for number in (0, 3, 1))

    @intrinsic
    def prefetch(_context: Any, array: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            address = builder.gep(make_array(array)(context, builder, arguments[0]).data, [arguments[1]])
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, *[ir.IntType(32)] * 3])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
            builder.call(function, [builder.bitcast(address, cgutils.voidptr_t), read, all_caches, data_cache])
            return context.get_dummy_value()

        return types.void(array, place), generate

    return prefetch


def assembly(function: Any) -> tuple[str, str]:
    """The name and the text of a function in LLVM's language, with all that it calls."""
    signature = tuple(numba_type(annotation) for annotation in parameters(function.py_func))
    function.compile(signature)
    result = function.overloads[signature]
    return result.fndesc.llvm_func_name, result.library.get_llvm_str()


def numba_type(annotation: Any) -> Any:
    """Numba's type for an annotation."""
    from numba import from_dtype, types

    inner, dtype = fields(annotation), element_dtype(annotation)
    if inner is not None:
        members = [numba_type(each) for each in inner]
        is_uniform = len(set(members)) == 1
        return (
            types.NamedUniTuple(members[0], len(members), annotation)
            if is_uniform
            else types.NamedTuple(members, annotation)
        )
    if dtype is not None:
        return types.Array(from_dtype(dtype), 1, "C")
    return {int: types.int64, float: types.float64}[annotation]


def keep_only(unit: Any, names: set[str]) -> None:
    """Remove what the functions of these names do not call."""
    from llvmlite import binding

    for function in unit.functions:
        if not function.is_declaration and function.name not in names:
            function.linkage = binding.Linkage.internal
    builder = binding.create_pass_builder(target_machine(), binding.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(unit, builder)


def target_machine() -> Any:
    """This CPU with all that it can do, or the one of Numba's environment variables."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    name, features = (os.environ.get(variable) for variable in CPU_VARIABLES)
    target = binding.Target.from_default_triple()
    return target.create_target_machine(
        cpu=name or binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten() if features is None else features,
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


def main(write: Callable[[bytes], Any]) -> None:
    """Compile what the command line names, and end with the process that waits for it."""
    end_with_parent(int(sys.argv[3]))
    modules, entries = (argument.split(",") for argument in sys.argv[1:3])
    try:
        write(compile_unit(modules, entries))
    except Exception as error:
        sys.exit(" ".join(str(error).split())[:MAX_REASON_CHARACTERS] or type(error).__name__)


if __name__ == "__main__":
    main(sys.stdout.buffer.write)
