# %% [markdown]
# # The dense CRF, step by step
#
# A network labels pixels, but its borders are blurred: it has seen the photograph at a coarse stride. A dense
# conditional random field (Krähenbühl and Koltun, NIPS 2011) moves the labels to the edges of the photograph. This page
# follows one photograph through it. `docs/notebooks/dense_crf.py` is the script; it takes some seconds on a CPU.

# %%
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch

import atrousops as ao
from atrousops.engine.predict import load_predictor

photo = skimage.data.astronaut()  # (512, 512, 3), uint8: Eileen Collins, NASA, public domain
image = torch.from_numpy(photo).permute(2, 0, 1)[None]  # (N, C, H, W) in 0..255: what the CRF compares colours in


def show(*panels, **options):
    """Pictures of one size in a row, each with its title."""
    size = (4.2 * len(panels), 4.6)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axis, (title, picture) in zip(axes[0], panels):
        drawn = axis.imshow(picture, **options)
        axis.set_title(title)
        axis.axis("off")
    return figure, axes[0], drawn


# %% [markdown]
# ## 1. What the network says
#
# The network that comes with the package finds people. Its scores are (L, H, W): a number for each of L = 2 labels,
# background and person, at each pixel. Their softmax is a probability.

# %%
predictor = load_predictor()
scores = predictor.scores(photo)[None]  # (N, L, H, W)
person = scores.softmax(1)[0, 1]


def outlined(mask):
    """The photograph with all that is not in the mask made pale."""
    return np.where(np.asarray(mask)[..., None], photo, 255 - (255 - photo) // 4)


labelled = ("labels of the network: person", outlined(person > 0.5))
figure, axes, drawn = show(("photograph", photo), labelled, ("probability of person", person), vmin=0, vmax=1)
figure.colorbar(drawn, shrink=0.8)

# %% [markdown]
# The person is found, and her border is not: it is rounded, and pieces of the flag and the helmet are taken for her.
#
# ## 2. Which pixels influence which
#
# The CRF rewards pixels that are alike for having one label. Two kernels weight the pairs of pixels i and j:
#
# - the spatial one, exp(-|p_i - p_j|² / (2 sxy²)), sees positions p alone, with a small sxy. It removes specks;
# - the bilateral one, exp(-|p_i - p_j|² / (2 sxy²) - |I_i - I_j|² / (2 srgb²)), sees colours I too. It reaches far,
#   but stops at edges.
#
# Here is the bilateral kernel of one pixel on the suit (cyan cross): we put a one there and zeros elsewhere, and
# filter. The permutohedral lattice does this in linear time; its features are position and colour, in units of the
# standard deviations.

# %%
row, column = 340, 90
window = (slice(192, 512), slice(0, 320))


def kernel(sxy, srgb):
    """The weight of pixel (row, column) with every other, 1 at most."""
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    features = torch.cat([torch.stack([x, y])[None] / sxy, image / srgb], 1)  # (1, 5, H, W)
    one = torch.zeros(1, 1, 512, 512)
    one[..., row, column] = 1
    seen = ao.functional.permutohedral_filter(one, features)[0, 0]
    return seen / seen.max()


panels = [
    (f"sxy = {sxy}, srgb = {srgb}", kernel(sxy, srgb).sqrt()[window]) for sxy, srgb in ((40, 5), (40, 13), (40, 60))
]


def crossed(*panels):
    """Pictures of the window, with a cross at the pixel."""
    for axis in show(*panels, cmap="magma")[1]:
        axis.plot(column - window[1].start, row - window[0].start, "+", color="cyan", markersize=14, markeredgewidth=3)


crossed(("photograph, a part", photo[window]), *panels)

# %% [markdown]
# Bright pixels have a large weight (the square root is drawn, so that small ones show). With a small srgb only pixels
# of nearly the same colour count; with a large one colours hardly matter, and only the distance is left.
#
# ## 3. Mean field
#
# The labels that satisfy all pairs best cannot be computed; mean field approximates them. It starts with the network's
# probabilities and repeats
#
#     Q = softmax(scores - sum_k mu_k K_k Q)
#
# where K_k filters Q by kernel k, and mu_k is minus the weight by which a label rewards itself among neighbours. After
# a few steps Q stands still.

# %%
settings = {"bilateral_compat": 6.0, "bilateral_sxy": 40.0, "bilateral_srgb": 5.0}  # found on other photographs


def after(iterations):
    """The probability of person after so many steps."""
    return ao.DenseCRF(iterations, **settings)(scores, image)[0, 1]


steps = {count: after(count) for count in (0, 1, 3, 10)}
show(*((f"{count} steps", q) for count, q in steps.items()), vmin=0, vmax=1)
for (first, before), (second, q) in zip(steps.items(), list(steps.items())[1:]):
    print(f"{first} -> {second} steps: {((q > 0.5) != (before > 0.5)).sum().item()} pixels change their label")

# %% [markdown]
# ## 4. Before and after

# %%
refined = steps[10] > 0.5
show(("network", outlined(person > 0.5)), ("network + dense CRF", outlined(refined)))

# %%
change = np.full((512, 512, 3), 255, dtype=np.uint8) - (255 - photo) // 4
change[np.asarray(refined & (person <= 0.5))] = (0, 150, 60)
change[np.asarray(~refined & (person > 0.5))] = (200, 30, 30)
show(("green: the CRF adds to the person; red: it takes away", change))

# %% [markdown]
# ## 5. Settings decide
#
# The defaults are pydensecrf's usual ones, chosen for networks that are surer of themselves. A weight that is too
# large lets small things vanish; a srgb that is too large lets labels flow over edges. `atrousops evaluate --tune-crf`
# searches them on validation images.

# %%
panels = [("weight 6, srgb 5, as above", outlined(refined))]
for title, other in (("weight 30", {"bilateral_compat": 30.0}), ("srgb 40", {"bilateral_srgb": 40.0})):
    crf = ao.DenseCRF(**{**settings, **other})
    panels.append((title, outlined(crf(scores, image)[0, 1] > 0.5)))
show(*panels)

# %% [markdown]
# ## 6. It has gradients
#
# Q is differentiable in the scores, so a network can be trained through the CRF. The gradient also says which scores
# decide about one pixel, here the one with the cross after two steps: those nearby where the network was undecided, and
# of the suit's colour.

# %%
leaf = scores.clone().requires_grad_()
ao.DenseCRF(2, **settings)(leaf, image)[0, 0, row, column].log().backward()
influence = leaf.grad[0, 1].abs()
influence[row, column] = 0  # its own score outweighs all others
influence = (influence / influence.quantile(0.999)).clamp(max=1).sqrt()
crossed(("photograph, a part", photo[window]), ("scores that decide about the cross", influence[window]))

# %% [markdown]
# [The dense CRF alone](../crf.md) has the parameters, batches, and how to come from pydensecrf. `ao.CRFasRNN` is the
# same CRF with weights that are learnt.
