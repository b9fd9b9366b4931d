"""Ways through a kernel's machine code: how many instructions a warp issues between two places, read and not run."""

from __future__ import annotations

import functools
import re

import resources

ARCH = "sm_90a"


class Code:
    """A kernel's basic blocks by the address of their first instruction, and which may follow which."""

    def __init__(self, sass: str) -> None:
        """`sass`: what cuobjdump -sass writes of one kernel."""
        found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+ +)?[A-Z][^;]*);", sass)
        instructions = [(int(address, 16), text) for address, text in found]
        jumps = {address: int(m[1], 16) for address, text in instructions if (m := self._jump(text))}
        self.blocks: dict[int, list[str]] = {}
        self.after: dict[int, list[int]] = {}
        last: int | None = None
        for address, text in instructions:
            if last is None or address in jumps.values():
                if last is not None:
                    self.after[last].append(address)
                last = address
                self.blocks[last], self.after[last] = [], []
            self.blocks[last].append(text)
            if address in jumps:
                self.after[last].append(jumps[address])
            if address in jumps or re.search(r"\b(EXIT|RET)\b", text):
                if re.match(r"@|BRA\S* !?U?P", text):
                    self.after[last].append(address + 16)
                last = None

    @staticmethod
    def _jump(text: str) -> re.Match[str] | None:
        return re.search(r"\bBRA\S* .*?(0x[0-9a-f]+)", text)

    def has(self, block: int, pattern: str) -> bool:
        return any(re.search(pattern, text) for text in self.blocks[block])

    def where(self, pattern: str) -> list[int]:
        """The blocks that hold such an instruction."""
        return [block for block in self.blocks if self.has(block, pattern)]

    def longest(self, start: int, through: str, without: str, loops: bool = True) -> list[str]:
        """The most instructions that can follow from the block `start` on until the code jumps back or ends, with one
        of `through` among them and, behind the first block, none of `without`; and no jump back without `loops`.
        """

        @functools.cache
        def rest(block: int, met: bool) -> tuple[int, tuple[int, ...]] | None:
            if block != start and self.has(block, without):
                return None
            if not loops and any(b <= block for b in self.after[block]):
                return None
            met = met or self.has(block, through)
            on = [b for b in self.after[block] if b > block]
            ways = [way for b in on if (way := rest(b, met))]
            if met and (len(on) < len(self.after[block]) or not on):
                ways.append((0, ()))
            if not ways:
                return None
            count, blocks = max(ways)
            return count + len(self.blocks[block]), (block, *blocks)

        found = rest(start, False)
        assert found, f"no way from {start:#x} through {through} without {without}"
        return [text for block in found[1] for text in self.blocks[block]]

    def shortest(self, start: int, end: int) -> list[str]:
        """The fewest instructions from one block to before another one."""
        ways = {start: (0, ())}
        for block in sorted(self.blocks):
            if block not in ways or block == end:
                continue
            count, blocks = ways[block]
            here = (count + len(self.blocks[block]), (*blocks, block))
            for b in self.after[block]:
                if b > block and (b not in ways or here < ways[b]):
                    ways[b] = here
        return [text for block in ways[end][1] for text in self.blocks[block]]

    def around(self, pattern: str) -> list[str]:
        """The fewest instructions of a turn of the shortest loop that holds such an instruction."""
        jumps = [(end, head) for end, after in self.after.items() for head in after if head <= end]
        turns = [self.shortest(head, end) + self.blocks[end] for end, head in jumps]
        return min((turn for turn in turns if any(re.search(pattern, text) for text in turn)), key=len)


@functools.cache
def code(pattern: str, arch: str = ARCH) -> dict[str, Code]:
    """The kernels whose names match, by name."""
    names = {name: symbol for name, symbol in resources.symbols().items() if re.fullmatch(pattern, name)}
    text = resources.disassembled(arch, list(names.values()))
    parts = {part.split("\n", 1)[0].strip(): part for part in text.split("Function : ")[1:]}
    return {name: Code(parts[symbol]) for name, symbol in names.items()}
