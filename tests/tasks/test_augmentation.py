import numpy as np
import pytest

from autoprune.tasks.augmentation import ASPECT, LEAST_AREA, CropAndMirror, random_box


def numbered(count, side):
    """Images whose pixels are all different, and none of them 0."""
    return np.arange(1, count * 2 * side * side + 1).reshape(count, 2, side, side)


@pytest.mark.parametrize("mirror", [False, True])
def test_each_image_is_a_shifted_part_of_the_padded_one(mirror):
    images = numbered(40, 6)
    before = images.copy()
    made = CropAndMirror(2, mirror=mirror)(images, np.random.default_rng(0))
    assert (images == before).all()
    found = set()
    for image, changed in zip(images, made, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        fitting = [
            (down, right, turned)
            for down in range(5)
            for right in range(5)
            for turned in ([False, True] if mirror else [False])
            for part in [padded[:, down : down + 6, right : right + 6]]
            if np.array_equal(part[:, :, ::-1] if turned else part, changed)
        ]
        assert len(fitting) == 1
        found.add(fitting[0])
    # Of 40 draws out of 25 (or 50) kinds, all alike or none turned has a chance below 1e-11.
    assert len(found) > 5
    assert {turned for _, _, turned in found} == ({False, True} if mirror else {False})


def test_the_same_generator_gives_the_same_images():
    augmentation, images = CropAndMirror(3), numbered(8, 5)
    first, again, other = (augmentation(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()


@pytest.mark.parametrize(("width", "height"), [(50, 40), (40, 200), (7, 7)])
def test_random_boxes_lie_inside_and_are_of_allowed_shape(width, height):
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_box(width, height, rng.random((10, 4)))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        wide, high = right - left, bottom - top
        # whole pixels round each side by up to a half
        assert (wide - 0.5) / (high + 0.5) <= ASPECT
        assert (high - 0.5) / (wide + 0.5) <= ASPECT
        assert (wide + 0.5) * (high + 0.5) >= LEAST_AREA * width * height


def test_where_no_try_fits_the_middle_is_taken():
    # all of the area at an aspect of 4/3 is higher than a wide image
    none_fits = np.full((10, 4), (1.0, 0.0, 0.5, 0.5))
    assert random_box(40, 40, none_fits) == (0, 0, 40, 40)
    assert random_box(200, 40, none_fits) == (73, 0, 126, 40)
