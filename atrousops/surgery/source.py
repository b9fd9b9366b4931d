"""What the source of a model's classes proves about the order in which layers are called."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

# Methods that set a module up or describe it: what they read of a layer is no part of a result.
_SETTING_UP = re.compile(
    r"__init__|_?init(ialize)?_\w*|\w+_init_\w*|_?reset_\w+|_?load_\w+|set_\w+|__repr__|extra_repr"
)
# Ways to a module's children that do not name them.
_REFLECTION = {"_modules", "children", "named_children", "modules", "named_modules", "get_submodule", "__dict__"}
_SIMPLE = (ast.Assign, ast.Return, ast.Expr, ast.AugAssign, ast.AnnAssign)
_NESTED = (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Calls:
    """What the methods of a class do with the children of their instance.

    Attributes:
        before: child -> the children that each call of it gets its one argument from; None for anything else.
        after: child -> the children that get each result and are all that ever does; None for anything else.
        touched: children that are used in another way than being called.
        elsewhere: attributes of other objects that are read: a child of that name may be called or read.
        reflects: whether children are reached otherwise than by name.
        digs: whether what stands in a container is indexed or gone through further.
        readable: whether the source was there.
    """

    before: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    after: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    touched: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    reflects: bool = False
    digs: bool = False
    readable: bool = True

    def follows(self, first: str, second: str) -> bool:
        """Whether every result of the one goes to the other, which gets nothing else, on every path there is."""
        return (
            self.after.get(first) == {second}
            and self.before.get(second) == {first}
            and not {first, second} & self.touched
        )


def calls_of(kind: Any) -> Calls:
    """Reads the methods of a class and of the classes it inherits from, up to nn.Module."""
    if kind not in _read:
        _read[kind] = _calls_of(kind)
    return _read[kind]


def _calls_of(kind: Any) -> Calls:
    found = Calls()
    for function in _functions(kind):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            found.readable = False
            continue
        definition = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
        if definition is None or definition.name != function.__name__:
            found.readable = False
        else:
            _Reader(definition, function, found).read()
    return found


def _functions(kind: type) -> Iterator[Any]:
    """All methods that may run: those that a subclass replaces only where one of its methods asks for super()."""
    seen, asks = set[str](), False
    for owner in kind.__mro__:
        if owner is nn.Module or not issubclass(owner, nn.Module) or owner.__module__.endswith("modules.container"):
            continue
        names = set[str]()
        for name, member in vars(owner).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            function = inspect.unwrap(function) if callable(function) else function
            if isinstance(function, FunctionType) and not _SETTING_UP.fullmatch(name):
                names.add(name)
                if asks or name not in seen:
                    yield function
                asks |= "super" in _names(function)
        seen |= names


def _names(function: FunctionType) -> set[str]:
    return {*function.__code__.co_names, *function.__code__.co_freevars}


_read: dict[Any, Calls] = {}


class _Reader:
    """One method."""

    def __init__(self, definition: ast.FunctionDef, function: Any, found: Calls) -> None:
        self.found, self.function, self.definition = found, function, definition
        arguments = [*definition.args.posonlyargs, *definition.args.args]
        plain = not any(getattr(d, "id", "") in ("staticmethod", "classmethod") for d in definition.decorator_list)
        self.own = arguments[0].arg if arguments and plain else ""
        self.parents = {child: node for node in ast.walk(definition) for child in ast.iter_child_nodes(node)}
        self.loads: dict[str, int] = defaultdict(int)
        self.neighbours: dict[ast.stmt, ast.stmt] = {}
        for node in ast.walk(definition):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.loads[node.id] += 1
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(node, block, None)
                if isinstance(statements, list):
                    self.neighbours.update(pairwise(statements))
        self.tries = any(isinstance(n, ast.Try | ast.Global | ast.Nonlocal) for n in ast.walk(definition))

    def read(self) -> None:
        nodes = list(ast.walk(self.definition))
        feeds = {call: self._consumer(call) for node in nodes if (call := self._call(node)) is not None}
        fed = {consumer: call for call, consumer in feeds.items() if consumer is not None}
        for call, consumer in feeds.items():
            self.found.after[call.func.attr].add(None if consumer is None else consumer.func.attr)
            self.found.before[call.func.attr].add(fed[call].func.attr if call in fed else None)
        called = {call.func for call in feeds}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node not in called:
                self._attribute(node)
            elif isinstance(node, ast.Call):
                self._digging(node)

    def _call(self, node: ast.AST) -> Any:
        """The node, if it is self.child(argument)."""
        if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
            return None
        own = isinstance(node.func, ast.Attribute) and self._is_self(node.func.value)
        return None if not own or isinstance(node.args[0], ast.Starred) else node

    def _is_self(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.own

    def _consumer(self, call: Any) -> Any:
        """The call of a child that gets the result of this one, where nothing else can."""
        parent: Any = self.parents[call]
        if self._call(parent) is not None:
            return parent
        following = self.neighbours.get(parent)
        target = parent.targets[0] if isinstance(parent, ast.Assign) and len(parent.targets) == 1 else None
        if not isinstance(target, ast.Name) or self.tries or not isinstance(following, _SIMPLE):
            return None
        name = target.id
        uses = [n for n in ast.walk(following) if isinstance(n, ast.Name) and n.id == name and self._is_load(n)]
        again = isinstance(following, ast.Assign) and [getattr(t, "id", "") for t in following.targets] == [name]
        if len(uses) != 1 or not (again or isinstance(following, ast.Return) or self.loads[name] == 1):
            return None
        node: Any = uses[0]
        consumer = self._call(self.parents[node])
        while node is not following:
            if isinstance(node, _NESTED):
                return None
            node = self.parents[node]
        # Neither a later closure nor an earlier one may keep the variable.
        closures = [n for n in ast.walk(self.definition) if isinstance(n, _NESTED) and n is not self.definition]
        kept = any(getattr(n, "id", "") == name for closure in closures for n in ast.walk(closure))
        return None if kept else consumer

    @staticmethod
    def _is_load(node: ast.Name) -> bool:
        return isinstance(node.ctx, ast.Load)

    def _attribute(self, node: ast.Attribute) -> None:
        parent = self.parents[node]
        compared = isinstance(parent, ast.Compare) and isinstance(parent.ops[0], ast.Is | ast.IsNot)
        if self._is_self(node.value):
            self.found.reflects |= node.attr in _REFLECTION
            if not compared:
                self.found.touched.add(node.attr)
        elif not self._is_of_a_library(node):
            self.found.elsewhere.add(node.attr)

    def _is_of_a_library(self, node: ast.Attribute) -> bool:
        base: Any = node.value
        while isinstance(base, ast.Attribute):
            base = base.value
        return isinstance(base, ast.Name) and isinstance(self.function.__globals__.get(base.id), ModuleType)

    def _digging(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Name) and function.id in ("getattr", "vars", "setattr") and node.args:
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
            if isinstance(name, str):
                (self.found.touched if self._is_self(node.args[0]) else self.found.elsewhere).add(name)
            else:
                self.found.reflects |= self._is_self(node.args[0])
        elif isinstance(function, ast.Subscript):
            self.found.digs |= not self._is_child(function.value)
        elif isinstance(function, ast.Name):
            loops = [n for n in ast.walk(self.definition) if isinstance(n, ast.For | ast.comprehension)]
            for loop in loops:
                if any(getattr(n, "id", "") == function.id for n in ast.walk(loop.target)):
                    direct = any(self._is_child(n) or self._is_self(n) for n in ast.walk(loop.iter))
                    self.found.digs |= not direct

    def _is_child(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and self._is_self(node.value)
