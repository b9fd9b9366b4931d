"""The critical path of the context module, counted in the machine code of its kernel of 21 channels: what the model of
csrc/core/context.cpp takes a layer and a tile to cost beside its products, and what a warp waits for."""

import re

import paths
import pytest
import resources

KERNELS = r"context_module_kernel<(half|bfloat16), 3>"
# Of a tile of two fragments: 14 steps of three products, of which four read the block's own rows only.
PRODUCTS, OWN = 2 * 14 * 3, 2 * 4 * 3


def modelled(name: str) -> float:
    """A constant of the model."""
    return float(re.search(rf"\b{name} = ([\d.]+)", (resources.ROOT / "csrc/core/context.cpp").read_text())[1])


def count(way: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, text)) for text in way)


@pytest.fixture(params=["half", "bfloat16"])
def code(request):
    return paths.code(KERNELS)[f"context_module_kernel<{request.param}, 3>"]


def tile_of(code: paths.Code) -> int:
    """Where a tile of a layer of nine taps begins: with the taps that read the block's own rows."""
    (block,) = [b for b in code.blocks if count(code.blocks[b], "HMMA") == OWN]
    return block


def test_a_tile(code):
    way = code.longest(tile_of(code), "STAS", r"\bSTG\b|BPT")
    way = way[: max(i for i, text in enumerate(way) if "STAS" in text) + 1]
    assert (count(way, "HMMA"), count(way, "LDSM")) == (PRODUCTS, PRODUCTS // 3)
    # Eight rows of eight channels, and a tile's 96 words of 16 bytes to two blocks, three a lane.
    assert (count(way, r"\bSTS\b"), count(way, "STAS")) == (12, 6)
    # Outside of the products; what stands between them is issued while the tensor cores are busy, at 6.4 cycles each.
    at = [i for i, text in enumerate(way) if "HMMA" in text]
    assert at[0] + len(way) - 1 - at[-1] <= modelled("kTile")
    assert at[-1] - at[0] < PRODUCTS * 4 / 0.629 / 2
    # What a warp meets in order: its block's own rows, what others push, and the whole cluster a layer late.
    met = [m[0] for text in way if (m := re.search("HMMA|PHASECHK|UCGABAR_WAIT|UCGABAR_ARV|STAS", text))]
    assert met[:OWN] == ["HMMA"] * OWN
    assert met[OWN] == "PHASECHK"
    rest = [x for x in met[OWN:] if x not in ("PHASECHK",)]
    assert rest == ["HMMA"] * (PRODUCTS - OWN) + ["UCGABAR_WAIT", "UCGABAR_ARV"] + ["STAS"] * 6


def test_a_layer_begins(code):
    tile = tile_of(code)
    begin = max(b for b in code.where(r"BAR\.SYNC") if b < tile)
    way = code.shortest(begin, tile)
    assert (count(way, r"BAR\.SYNC"), count(way, "UCGABAR|MEMBAR|LDG")) == (1, 0)
    # Weights in 42 loads, biases in three, of which the model counts the bytes.
    loads = count(way, r"\bLDS\b")
    assert loads == 42 + 3
    assert len(way) - loads <= modelled("kLayer")


def test_the_beginning(code):
    """Five chunks of eight channels, of each thread, are under way together, after its weights. Two warps share a
    scheduler; one issues while the other's loads are under way. Then the cluster's barrier, and the first weights."""
    first, second = code.where(r"UCGABAR_ARV")[:2]
    assert max(count(code.blocks[b], "LDG") for b in code.blocks if b < first) == 5 * 8
    way = code.longest(0, "UCGABAR_ARV", "HMMA", loops=False)
    assert count(way, "LDG") >= 5 * 8 + 2 * 8
    fetch = sum(len(code.blocks[b]) for b in code.blocks if first < b <= second)
    chunks = 4 * 64 * 3
    cycles = 2 * (len(way) + fetch) + 2 * modelled("kFlight")
    assert cycles <= modelled("kBegin") + modelled("kPixel") * chunks
