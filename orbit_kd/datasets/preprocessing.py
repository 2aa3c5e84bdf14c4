"""From decoded images to the network's input: one function for training, calibration, evaluation and golden pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orbit_kd.datasets.augment import Augment, apply_augment
from orbit_kd.datasets.resizing import centre, resize
from orbit_kd.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf

# ITU-R BT.601 luma, the weights of Pillow's convert("L").
LUMA = (0.299, 0.587, 0.114)
# How a size alone would lead astray a network that was trained on Keras' own.
_KERAS_RESIZES = (
    "; with --loader=image_dataset_from_directory or --loader=load_img (ImageDataGenerator) if these made the training "
    "images, as Keras resizes otherwise than we do"
)


def _pair(value: Any, name: str) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(
            f"Preprocess({name}={value!r}) is no image size.",
            expected="a positive integer, or (height, width)",
            fix=f"give for example {name}=64 or {name}=(64, 96)",
        )
    return pair


LOADERS: dict[str, tuple[str, ...]] = {
    "orbit_kd": ("bilinear", "bicubic", "lanczos3", "lanczos5"),
    "image_dataset_from_directory": (
        "bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic",
    ),
    "load_img": ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
}  # fmt: skip
"""What reads and resizes images -> the interpolations it has, its default first."""

ASPECTS = ("stretch", "crop", "pad")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image file to the network's input: channels, crop, resize, then (x - mean) * scale / std, in this order.

    The one description used by training, calibration, evaluation and golden pairs alike; it is stored in the report
    and in the exported file's metadata.

    Attributes:
        crop: centre crop (height, width) in pixels of the decoded image; None keeps all.
        resize: (height, width) in pixels after the crop; None keeps the size.
        scale: factor on the pixel values, after the mean is taken off: one number, or one a channel.
        mean: subtracted from each channel, in units of the decoded pixels; empty for none.
        channels: 1 (luminance) or 3 (grey repeated); None keeps what the file has.
        loader: whose way of reading and resizing files the network was trained with: "orbit_kd" (Pillow; alpha over
            black, 16 bits kept, antialiased), "image_dataset_from_directory" (Keras: TensorFlow's decoders, no
            antialiasing) or "load_img" (Keras' ImageDataGenerator and load_img: Pillow on 8 bits).
        interpolation: of the resize; None is the loader's default: bilinear, but "nearest" for load_img. Others:
            bicubic, lanczos3, lanczos5 of the first two loaders; nearest, area, gaussian, mitchellcubic of the second;
            bilinear, bicubic, lanczos, box, hamming of load_img.
        aspect: what becomes of another ratio of height to width: "stretch" it, "crop" the centre
            (Keras' crop_to_aspect_ratio, keep_aspect_ratio) or "pad" with zeros (pad_to_aspect_ratio).
        bgr: whether colours come in reverse order, as keras.applications' VGG and ResNet (v1) have them; `mean` and
            `std` are then in that order.
        std: each channel is divided by it, in units of the decoded pixels; empty for none.
        bands: which channels of the files the network takes, in this order: numbers counted from 0 (as text), or names
            of the folders that hold the bands of an image in a file each; empty for all there are. `load` takes them
            where it reads the files, so what comes to `apply` has these bands only.
    """

    crop: tuple[int, int] | None = None
    resize: tuple[int, int] | None = None
    scale: float | tuple[float, ...] = 1.0
    mean: tuple[float, ...] = ()
    channels: int | None = None
    loader: str = "orbit_kd"
    interpolation: str | None = None
    aspect: str = "stretch"
    bgr: bool = False
    std: tuple[float, ...] = ()
    bands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", _pair(self.crop, "crop"))
        object.__setattr__(self, "resize", _pair(self.resize, "resize"))
        for name in ("mean", "std"):
            value = getattr(self, name)
            value = value if isinstance(value, (tuple, list)) else (value,)
            object.__setattr__(self, name, tuple(float(v) for v in value))
        if isinstance(self.scale, (tuple, list)):
            scale = tuple(float(v) for v in self.scale)
            object.__setattr__(self, "scale", scale[0] if len(scale) == 1 else scale or 1.0)
        bands = self.bands.split(",") if isinstance(self.bands, str) else self.bands
        object.__setattr__(self, "bands", tuple(str(b).strip() for b in bands if str(b).strip()))

        def need(name: str, good: bool, expected: str, fix: str) -> None:
            if not good:
                raise InputError(f"Preprocess({name}={getattr(self, name)!r}).", expected=expected, fix=fix)

        need("channels", self.channels in (None, 1, 3), "1, 3 or None", "use 1 for grey, 3 for RGB")
        need("std", all(v > 0 for v in self.std), "numbers above 0", "leave out what is not to be divided (--std)")
        need("bands", len(set(self.bands)) == len(self.bands), "each band once", "name each band once (--bands)")
        need(
            "bands", not self.bands or self.loader == "orbit_kd", f"none with the loader {self.loader}",
            "leave out the loader (--loader), which reads grey and RGB files only",
        )  # fmt: skip
        known = ", ".join(LOADERS)
        need("loader", self.loader in LOADERS, f"one of {known}", "name the one of the training (--loader)")
        ways = LOADERS[self.loader]
        need("aspect", self.aspect in ASPECTS, f"one of {', '.join(ASPECTS)}", "mend it (--aspect)")
        if not self.resize:
            alone = "leave it out, or give the size too: Preprocess(resize=...) (--resize)"
            need("interpolation", self.interpolation is None, "None where nothing is resized", alone)
            need("aspect", self.aspect == "stretch", '"stretch" where nothing is resized', alone)
            return
        if self.interpolation is None:
            object.__setattr__(self, "interpolation", ways[0])
        others = ", ".join(other for other, names in LOADERS.items() if self.interpolation in names)
        way_out = f"choose one of these, or a loader that has it: {others}" if others else "choose one of these"
        need("interpolation", self.interpolation in ways, f"one of {', '.join(ways)} of {self.loader}", way_out)
        need(
            "aspect", (self.loader, self.aspect) != ("load_img", "pad"), "stretch or crop: load_img pads nothing",
            "use aspect=\"crop\", or pad with another loader (--aspect, --loader)",
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `Preprocess(**d)` gives it back.

        Without bands there is no entry for them, as before they came: keys and files of that time stay what they were.
        """
        values = dataclasses.asdict(self)
        return values if self.bands else {name: v for name, v in values.items() if name != "bands"}


def output_shape(
    preprocess: Preprocess, image_shape: Sequence[int], *, name: str = "the image"
) -> tuple[int, int, int]:
    """Shape (height, width, channels) that `apply` makes of an image of `image_shape`; `name` is for messages.

    Raises:
        InputError: the crop is larger than the image, `channels` or `bgr` cannot be had, or `mean`, `std` or `scale`
            has another length.
    """
    height, width, channels = (int(n) for n in image_shape)
    if preprocess.crop and (preprocess.crop[0] > height or preprocess.crop[1] > width):
        raise InputError(
            f"The crop {_size(preprocess.crop)} is larger than {name}, which is {_size((height, width))}.",
            expected="a crop inside the image (height x width)",
            fix=f"use Preprocess(crop={min(height, width)}) or less (--crop), or Preprocess(resize=...) (--resize)",
        )
    if preprocess.channels not in (None, channels) and {preprocess.channels, channels} != {1, 3}:
        raise InputError(
            f"Preprocess(channels={preprocess.channels}), but {name} has {channels} channels.",
            expected="an image of 1 or 3 channels",
            fix="leave Preprocess(channels=None) (no --channels) to keep the bands as they are",
        )
    height, width = preprocess.resize or preprocess.crop or (height, width)
    channels = preprocess.channels or channels
    scale = preprocess.scale if isinstance(preprocess.scale, tuple) else ()
    for field, values in (("mean", preprocess.mean), ("std", preprocess.std), ("scale", scale)):
        if len(values) not in (0, 1, channels):
            raise InputError(
                f"Preprocess({field}=...) has {len(values)} values for {channels} channels.",
                expected=f"1 or {channels} values",
                fix=f"give one {field} for all channels or one for each (--{field})",
            )
    if preprocess.bgr and channels != 3:
        raise InputError(
            f"Preprocess(bgr=True), but {name} has {channels} channels.",
            expected="3 channels, whose order can be reversed",
            fix="leave bgr out (--nobgr), or convert with Preprocess(channels=3) (--channels=3)",
        )
    return height, width, channels


def check(preprocess: Preprocess, image_shape: Sequence[int], input_shape: Sequence[int | None]) -> None:
    """Makes sure that images of `image_shape`, after `preprocess`, are what the model takes.

    Args:
        preprocess: what happens to the images.
        image_shape: (height, width, channels) of a decoded image.
        input_shape: the model's input, (height, width, channels) or with a leading batch size; None fits anything.

    Raises:
        InputError: they differ; the message names the Preprocess argument and the flag that mends it.
    """
    if len(input_shape) not in (3, 4):
        raise InputError(
            f"The model takes inputs of shape {tuple(input_shape)}.",
            expected="images: (batch, height, width, channels)",
            fix="use a model with one image input",
        )
    got, want = output_shape(preprocess, image_shape), tuple(input_shape)[-3:]
    height, width, channels = image_shape
    if any(w not in (None, g) for w, g in zip(want[:2], got[:2], strict=True)):
        size = (want[0] or got[0], want[1] or got[1])
        flag = str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
        value = flag if size[0] == size[1] else f"({size[0]}, {size[1]})"
        ways = f"scale the images with Preprocess(resize={value}) (--resize={flag})"
        if size[0] <= height and size[1] <= width:
            ways = f"cut out the centre with Preprocess(crop={value}) (--crop={flag}), or {ways}"
            if preprocess.resize:
                ways += ", in place of the present resize"
        if preprocess.loader == "orbit_kd":
            ways += _KERAS_RESIZES
        raise InputError(
            f"Images of {_size((height, width))} become {_size(got)} after Preprocess, the model takes {_size(want)}.",
            expected=f"height x width {_size(want)} (None: any)",
            fix=ways,
        )
    if want[2] not in (None, got[2]):
        if want[2] in (1, 3) and channels in (1, 3):
            fix = f"convert with Preprocess(channels={want[2]}) (--channels={want[2]})"
        else:
            fix = f"use images of {want[2]} channels, or a model that takes {got[2]}"
        raise InputError(
            f"Images have {got[2]} channels after Preprocess, the model takes {want[2]}.",
            expected=f"{want[2]} channels",
            fix=fix,
        )


def check_augment(preprocess: Preprocess, image_shape: Sequence[int], augment: Augment, *, lowest: float = 0.0) -> None:
    """Makes sure that `augment` can be applied to images of `image_shape`.

    Args:
        preprocess: what happens to the images.
        image_shape: (height, width, channels) of a decoded image.
        augment: the changes.
        lowest: the lowest pixel value of all images.

    Raises:
        InputError: quarter turns of a frame that is not square, a shift beyond the reflected image, or speckle on
            negative values.
    """
    if augment.speckle and lowest < 0:
        raise InputError(
            f"Augment(speckle={augment.speckle}) on images with values down to {lowest:g}.",
            expected="amplitudes or intensities, which are 0 or more: speckle multiplies them",
            fix="give linear values in place of decibels, or leave speckle out (--speckle)",
        )
    height, width = int(image_shape[0]), int(image_shape[1])
    frame = preprocess.crop or (height, width)
    if augment.turns and frame[0] != frame[1]:
        raise InputError(
            f"Augment(turns=True) on images of {_size(frame)}.",
            expected="a square frame",
            fix=f"use Preprocess(crop={min(frame)}) (--crop={min(frame)}), or turns=False",
        )
    if augment.shift >= min(height, width):
        raise InputError(
            f"Augment(shift={augment.shift}) on images of {_size((height, width))}.",
            expected="a shift smaller than the image",
            fix=f"use shift={max(1, min(frame) // 8)}",
        )


def apply(
    preprocess: Preprocess, images: tf.Tensor, *, augment: Augment | None = None, seed: tf.Tensor | None = None
) -> tf.Tensor:
    """Channels, centre crop, resize, then (x - mean) * scale / std, in this order; usable inside `tf.data` maps.

    The resize of the loader "orbit_kd" is antialiased and agrees with Pillow's to its rounding to 8 bits; those of the
    others give what the Keras function of that name gives, to the bit.

    Args:
        preprocess: what to do.
        images: one decoded image (height, width, channels) or a batch of them; uint8, uint16 or float32.
        augment: random changes on the way; see `Augment`.
        seed: with `augment`, an int64 pair for one image, or (batch, 2).

    Returns:
        float32 tensor of the same rank.
    """
    import tensorflow as tf

    images = tf.convert_to_tensor(images)
    if images.shape.rank == 3:
        seed = None if seed is None else tf.convert_to_tensor(seed)[None]
        return apply(preprocess, images[None], augment=augment, seed=seed)[0]

    top = images.dtype.max if images.dtype in (tf.uint8, tf.uint16) else None
    if augment is None or augment == Augment():
        x = tf.cast(centre(images, preprocess.crop), tf.float32)
    else:
        x = apply_augment(images, preprocess.crop, augment, seed)
        x = x if top is None else tf.minimum(x, float(top))
    if preprocess.channels == 1 and x.shape[-1] == 3:
        x = tf.reduce_sum(x * tf.constant(LUMA), axis=-1, keepdims=True)
    elif preprocess.channels == 3 and x.shape[-1] == 1:
        x = tf.repeat(x, 3, axis=-1)
    if preprocess.resize:
        x = resize(preprocess, preprocess.resize, x, images.dtype)
    if preprocess.bgr:
        x = x[..., ::-1]
    if preprocess.mean:
        x -= tf.constant(preprocess.mean)
    if preprocess.scale != 1.0:
        x *= tf.constant(preprocess.scale) if isinstance(preprocess.scale, tuple) else preprocess.scale
    return x / tf.constant(preprocess.std) if preprocess.std else x


def _size(shape: Sequence[int | None]) -> str:
    return f"{shape[0]}x{shape[1]}"
