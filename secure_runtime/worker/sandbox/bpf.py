"""A small assembler for seccomp filters, and the call that installs one.

A filter is a list of rules tried in order; the first rule whose call and conditions match decides. Each rule compiles
to a few instructions with short forward jumps, so no jump can grow beyond its eight bits.

Trusts: nothing. Never: emits SECCOMP_RET_KILL_THREAD, which would leave a process that neither answers nor ends.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secure_runtime.worker.sandbox import kernel

ALLOW = 0x7FFF0000
KILL = 0x80000000  # the whole process
_ERRNO = 0x00050000

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _AND, _RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000

_SECCOMP_SET_MODE_FILTER, _TSYNC = 1, 1


def deny(error_number: int) -> int:
    """The action that makes the call fail with this error."""
    return _ERRNO | error_number


@dataclass(frozen=True)
class Condition:
    """`argument[index] & mask == value`, on the low 32 bits; `whole` demands that the high 32 bits are zero too."""

    index: int
    value: int
    mask: int = 0xFFFFFFFF
    whole: bool = False


@dataclass(frozen=True)
class Rule:
    """`action` for these calls where every condition holds; otherwise the next rule is tried."""

    calls: tuple[str, ...]
    action: int
    conditions: tuple[Condition, ...] = ()


def _instruction(code: int, k: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _conditions(conditions: Sequence[Condition]) -> list[bytes]:
    """Instructions that fall through when all hold; jumps to one past the rule's RETURN otherwise are patched in by
    `_rule`, so each failing jump is noted as if_false = 255."""
    made = []
    for condition in conditions:
        low = _ARGUMENTS_AT + 8 * condition.index  # little endian on both architectures
        made.append(_instruction(_LOAD, low))
        if condition.mask != 0xFFFFFFFF:
            made.append(_instruction(_AND, condition.mask))
        made.append(_instruction(_JUMP_EQUAL, condition.value, if_false=255))
        if condition.whole:
            made.append(_instruction(_LOAD, low + 4))
            made.append(_instruction(_JUMP_EQUAL, 0, if_false=255))
    return made


def _rule(number: int, rule: Rule) -> list[bytes]:
    body = [*_conditions(rule.conditions), _instruction(_RETURN, rule.action)]
    patched = []
    for place, instruction in enumerate(body):
        code, _, if_false, k = struct.unpack("=HBBI", instruction)
        if code == _JUMP_EQUAL and if_false == 255:
            instruction = _instruction(code, k, if_false=len(body) - place - 1)
        patched.append(instruction)
    # The conditions overwrite the accumulator, so a rule that may fall through is followed by a reload of the number.
    reload = [_instruction(_LOAD, _NUMBER_AT)] if rule.conditions else []
    return [_instruction(_JUMP_EQUAL, number, if_false=len(patched) + len(reload)), *patched, *reload]


def assemble(
    rules: Sequence[Rule], *, numbers: Mapping[str, int], arch: int, highest_known: int, default: int, younger: int
) -> bytes:
    """The filter program. Other architectures and the x32 interface kill; calls above `highest_known` get `younger`."""
    program = [
        _instruction(_LOAD, _ARCH_AT),
        _instruction(_JUMP_EQUAL, arch, if_true=1),
        _instruction(_RETURN, KILL),
        _instruction(_LOAD, _NUMBER_AT),
        _instruction(_JUMP_GREATER, _X32_BIT - 1, if_false=1),
        _instruction(_RETURN, KILL),
        _instruction(_JUMP_GREATER, highest_known, if_false=1),
        _instruction(_RETURN, younger),
    ]
    for rule in rules:
        for name in rule.calls:
            if name in numbers:
                program += _rule(numbers[name], rule)
    program.append(_instruction(_RETURN, default))
    return b"".join(program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Put the filter on every thread of the process (TSYNC); raises OSError. It can never be taken off again."""
    wanted = _Program(len(program) // 8, program)
    result = kernel.call("seccomp", _SECCOMP_SET_MODE_FILTER, _TSYNC, wanted)
    if result != 0:
        raise OSError(0, f"seccomp: thread {result} could not be covered")
