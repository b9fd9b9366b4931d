# %% [markdown]
# # Fine-tuning on a folder of one's own
#
# From a few images with masks to a network that segments the next ones: here, coins. The network that comes with the
# package was trained on cell nuclei and has never seen a coin; some seconds of training on four pictures teach it.
# `docs/notebooks/fine_tune.py` is the script. [Your own data](../own-data.md) has the same by the command line.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage
import skimage.data
import torch
from PIL import Image

from atrousops import models
from atrousops.engine import evaluate, recipe, train
from atrousops.engine.predict import load_predictor

torch.manual_seed(0)

# %% [markdown]
# ## 1. A folder of images and masks
#
# Usually it is there already. We cut scikit-image's photograph of Greek coins into six pictures, and make the masks
# with its textbook recipe: coins are what closed edges surround.

# %%
coins = skimage.data.coins()
photo = np.stack([coins] * 3, axis=2)  # as RGB, which the network was trained on
edges = skimage.filters.sobel(coins)
seeds = np.where(coins < 30, 1, np.where(coins > 150, 2, 0))
filled = scipy.ndimage.binary_fill_holes(skimage.segmentation.watershed(edges, seeds) == 2)
truth = skimage.morphology.remove_small_objects(filled, max_size=60)

folder = Path("coins")
for split, columns in (("train", (0, 128)), ("val", (256,))):
    for column in columns:
        for row in (0, 150):
            for kind, pixels in (("images", photo), ("masks", truth.astype(np.uint8))):
                path = folder / split / kind / f"{row}_{column}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[row : row + 150, column : column + 128]).save(path)
(folder / "classes.txt").write_text("background\ncoin\n")
print(*sorted(str(path) for path in folder.rglob("*.*")), sep="\n")


# %%
def read(path):
    return np.array(Image.open(path).convert("RGB"))


def show(*panels):
    """Pictures in a row, each with its title."""
    _, axes = plt.subplots(1, len(panels), figsize=(2.8 * len(panels), 3.4), layout="constrained")
    for axis, (title, picture) in zip(axes, panels):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title)
        axis.axis("off")


def marked(image, mask):
    """The image with the mask's pixels in orange."""
    return np.where((mask == 1)[..., None], (image // 2 + np.array([127, 70, 0])).astype(np.uint8), image)


images = sorted((folder / "train" / "images").iterdir())
show(*((path.stem, marked(read(path), read(folder / "train" / "masks" / path.name)[..., 0])) for path in images))

# %% [markdown]
# These are the four pictures to learn from, with their masks in orange. Two more are held back to judge by.
#
# ## 2. A recipe
#
# `recipe.main` looks at the folder, measures it, and writes a recipe: what `atrousops recipe` prints. Its comments say
# what was found and what was guessed.

# %%
text = recipe.main("coins", "unet", progress=False)
Path("coins.yaml").write_text(text)
print(text)

# %% [markdown]
# ## 3. Before
#
# The network for nuclei, on a coin picture that it has to do with as it is.

# %%
held_back = sorted((folder / "val" / "images").iterdir())
nuclei = load_predictor("unet_nuclei")
before = [nuclei(read(path)) for path in held_back]
show(*((f"{path.stem}, 'nuclei'", marked(read(path), mask)) for path, mask in zip(held_back, before)))

# %% [markdown]
# ## 4. Training
#
# `init.weights` starts from that network, all of whose weights fit: it has as many channels and classes. (Of a file
# with other classes the outputs start afresh, or are taken by name.) The other entries make the training short: twelve
# steps of two crops do for four pictures of one kind, and for nothing else.

# %%
settings = [
    "init.weights=" + str(models.registry.locate("unet_nuclei")),
    "model.arguments={num_classes: 2, width: 16, batch_norm: true}",
    "augmentation={crop: 96, scale: [0.8, 1.25]}",
    "schedule={steps: 12, cooldown: 4}",
    "batch=2",
    "average=0.0",
    "optimiser={lr: 2.0e-3}",
]
weights = train.main("coins.yaml", output="runs/coins", overrides=settings, progress=False)

# %%
loss = np.genfromtxt("runs/coins/log.csv", delimiter=",", names=True)
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.plot(loss["step"], loss["loss"])
axis.set(title="loss of each step", xlabel="step", ylim=(0, None))

# %% [markdown]
# ## 5. After
#
# The pictures that were held back, and the scores on them: intersection over union of each class.

# %%
found = load_predictor(weights)
after = [found(read(path)) for path in held_back]
panels = []
for path, mask in zip(held_back, after):
    panels += [(path.stem, read(path)), ("coins found", marked(read(path), mask))]
show(*panels)
print(evaluate.report(evaluate.main("coins.yaml", weights, overrides=settings[1:2], progress=False)))

# %% [markdown]
# The file of weights knows its classes and how images are normalised: `atrousops segment FOLDER --weights FILE` does
# the next folder, and [deployment](../export.md) makes an ONNX file of it. [Training](../training.md) has all entries
# of a recipe.
