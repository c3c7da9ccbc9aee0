"""Videos and volumes: patches with three coordinates, every encoding, selector and reducer that fits them."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from tests.helpers.models import SELECTIONS, TINY, tiny_config
from tests.helpers.positions import AXES, tell
from tests.helpers.videos import clips, every_encoding, video_config
from vit_hf import (
    AdaptiveViTBackbone,
    AdaptiveViTConfig,
    AdaptiveViTForImageClassification,
    AdaptiveViTForMaskedImageModeling,
    AdaptiveViTForPreTraining,
    AdaptiveViTForSemanticSegmentation,
    AdaptiveViTForVideoClassification,
    AdaptiveViTModel,
)
from vit_hf.model.patches import (
    ImagePatches,
    PatchTokens,
    flatten_channels_last,
    grid_coordinates,
    raster_indices,
)
from vit_hf.model.pixel_scorers import PIXEL_SCORERS, VOLUME_SCORERS, pixel_scores
from vit_hf.model.positions import interpolation_weights, sample_bias_table, sinusoid_3d
from vit_hf.model.selectors import VOLUME_SELECTORS


VIDEO_SELECTIONS = {**SELECTIONS, **{name: {"patch_selector": name} for name in VOLUME_SELECTORS}}
every_selection = pytest.mark.parametrize("selection", VIDEO_SELECTIONS.values(), ids=VIDEO_SELECTIONS)


def cut(videos: torch.Tensor) -> dict[str, torch.Tensor]:
    """Videos of one size as patches, in another order."""
    patches = ImagePatches.from_images(videos.transpose(1, 2), (2, 8, 8))
    tokens = patches.gather(torch.randperm(patches.num_patches).expand(len(videos), -1))
    return {
        "pixel_values": flatten_channels_last(tokens.features, (2, 8, 8)),
        "patch_coordinates": tokens.coordinates,
        "spatial_shapes": tokens.grid,
    }


class TestAgainstPlainTorch:
    def test_the_plain_model_is_a_convolution_and_blocks(self):
        """The first model of ViViT, written plainly: Conv3d, CLS, a table, pre-norm blocks of torch, a
        linear head."""
        torch.manual_seed(1)
        model = AdaptiveViTForVideoClassification(video_config(layer_norm_eps=1e-5)).eval()
        vit, videos = model.vit, clips()
        stem = vit.embeddings.patch_embeddings.projection
        states = nn.functional.conv3d(videos.transpose(1, 2), stem.weight, stem.bias, stride=(2, 8, 8))
        states = torch.cat((vit.embeddings.cls_token.expand(2, -1, -1), states.flatten(2).mT), dim=1)
        states = states + vit.embeddings.position_encoding.position_embeddings
        for ours in vit.layers:
            block = nn.TransformerEncoderLayer(
                32, 4, 64, activation="gelu", batch_first=True, norm_first=True
            )
            attention = ours.attention
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            block.load_state_dict(
                {
                    "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
                    "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
                    "self_attn.out_proj.weight": attention.o_proj.weight,
                    "self_attn.out_proj.bias": attention.o_proj.bias,
                    "linear1.weight": ours.mlp.fc1.weight,
                    "linear1.bias": ours.mlp.fc1.bias,
                    "linear2.weight": ours.mlp.fc2.weight,
                    "linear2.bias": ours.mlp.fc2.bias,
                    "norm1.weight": ours.layernorm_before.weight,
                    "norm1.bias": ours.layernorm_before.bias,
                    "norm2.weight": ours.layernorm_after.weight,
                    "norm2.bias": ours.layernorm_after.bias,
                }
            )
            states = block.eval()(states)
        logits = model.classifier(vit.layernorm(states)[:, 0])
        torch.testing.assert_close(model(videos).logits, logits, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("source", [(3, 4, 4), (2, 5, 3)])
    @pytest.mark.parametrize("grid", [(5, 6, 7), (1, 2, 9)])
    def test_interpolation_weights_equal_trilinear(self, source, grid):
        table = torch.randn(1, 2, *source)
        weights = interpolation_weights(grid_coordinates(*grid)[None], torch.tensor([grid]), source, "linear")
        expected = nn.functional.interpolate(table, grid, mode="trilinear").flatten(2).mT
        torch.testing.assert_close(weights @ table.flatten(2).mT, expected, atol=1e-5, rtol=1e-5)

    def test_cubic_weights_are_bicubic_in_frames_and_cubic_in_time(self):
        source, grid = (3, 4, 5), (7, 6, 8)
        table = torch.randn(1, 2, *source)
        weights = interpolation_weights(grid_coordinates(*grid)[None], torch.tensor([grid]), source, "cubic")
        frames = nn.functional.interpolate(table.flatten(1, 2), grid[1:], mode="bicubic").unflatten(1, (2, 3))
        lines = nn.functional.interpolate(frames.flatten(3), (grid[0], 48), mode="bicubic")
        torch.testing.assert_close(weights @ table.flatten(2).mT, lines.flatten(2).mT, atol=1e-5, rtol=1e-5)

    def test_bias_table_of_another_grid_is_interpolated(self):
        table, grid = torch.randn(2, 5, 7, 3), (4, 3, 3)
        resized = nn.functional.interpolate(
            table[None], tuple(2 * side - 1 for side in grid), mode="trilinear"
        )
        places = grid_coordinates(*grid)
        differences = places[:, None] - places[None]
        time, row, column = (differences + torch.tensor(grid) - 1).long().unbind(-1)
        read = sample_bias_table(table, differences[None], torch.tensor([grid]))
        torch.testing.assert_close(read[0], resized[0][:, time, row, column], atol=1e-5, rtol=1e-5)

    def test_sinusoid_3d_is_one_sinusoid_for_each_axis(self):
        table = sinusoid_3d(torch.tensor([[3.0, 5.5, 2.0]]), 26)[0]
        for axis, place in enumerate((3.0, 5.5, 2.0)):
            angles = [place / 10000 ** (channel / 4) for channel in range(4)]
            expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert table[8 * axis : 8 * axis + 8].tolist() == pytest.approx(expected, abs=1e-5)
        assert table[24:].tolist() == [0, 0]


class TestPatches:
    def test_raster_order_is_time_then_rows_then_columns(self):
        patches = ImagePatches.from_images(torch.randn(1, 3, 7, 25, 33), (2, 8, 8))
        assert patches.grid.tolist() == [[3, 3, 4]] and patches.full_grid == (3, 3, 4)
        index = (2 * 3 + 1) * 4 + 3
        assert patches.coordinates[0, index].tolist() == [2, 1, 3]
        assert raster_indices(patches.coordinates, patches.grid).tolist() == [list(range(36))]
        taken = patches.gather(torch.tensor([[index]])).features[0, 0].view(3, 2, 8, 8)
        assert torch.equal(taken, patches.image[0, :, 4:6, 8:16, 24:32])

    def test_cut_patches_go_back_together(self):
        whole = ImagePatches.from_images(torch.randn(2, 3, 6, 16, 24), (2, 8, 8))
        apart = ImagePatches(whole.pixels.flatten(1, 3), whole.coordinates, whole.grid)
        assert torch.equal(torch.stack(apart.to_images()), whole.image)

    def test_thumbnail_is_small_along_every_axis(self):
        frames = torch.arange(16.0)[None, None, :, None, None].expand(1, 1, 16, 32, 32)
        patches = ImagePatches.from_images(frames, (2, 8, 8))
        thumbnail = patches.thumbnail_patches((8, 16, 16))
        assert thumbnail.image.shape == (1, 1, 8, 16, 16) and thumbnail.num_patches == 16
        assert thumbnail.coordinates[0, 0].tolist() == [0.5, 0.5, 0.5]
        # Each frame stands for two, antialiased.
        torch.testing.assert_close(thumbnail.image[0, 0, 2:-2, 0, 0], torch.arange(4.5, 12, 2))

    @every_encoding
    def test_patches_that_were_cut_before(self, encoding):
        model = AdaptiveViTForVideoClassification(video_config(position_encoding=encoding)).eval()
        videos = clips(height=40)
        torch.testing.assert_close(model(**cut(videos)).logits, model(videos).logits, atol=1e-4, rtol=1e-4)


class TestPositions:
    @every_encoding
    @pytest.mark.parametrize("grid", [(3, 4, 4), (2, 5, 6)])
    def test_subset_equals_full_grid_at_the_same_places(self, encoding, grid):
        part = position_encoding(encoding)
        indices, num_patches = torch.tensor([[3, 11, 25, 10], [0, 1, 7, 31]]), math.prod(grid)
        full = PatchTokens(
            torch.zeros(2, num_patches, 32),
            grid_coordinates(*grid).expand(2, -1, -1),
            torch.tensor([grid, grid]),
            full_grid=grid,
        )
        of_some, of_full = tell(part, full.gather(indices), 2), tell(part, full, 2)
        assert of_some.keys() == of_full.keys()
        for answer, values in of_full.items():
            for video in range(2):
                places = indices[video]
                if answer == "bias":
                    places = torch.cat((torch.arange(2), places + 2))
                chosen = values[min(video, len(values) - 1)]
                for axis in AXES[answer]:
                    chosen = chosen.index_select(axis - 1, places)
                torch.testing.assert_close(of_some[answer][video], chosen, atol=1e-5, rtol=1e-5)

    @every_encoding
    def test_every_axis_is_told_apart(self, encoding):
        """Without positions a clip that is played backwards, or turned over, has the same answer; with
        them another."""
        model = AdaptiveViTForVideoClassification(video_config(position_encoding=encoding)).eval()
        with torch.no_grad():
            for value in model.vit.embeddings.position_encoding.parameters():
                value.add_(0.3 * torch.randn_like(value))
        videos = clips()
        patches = videos.unflatten(4, (4, 8)).unflatten(3, (4, 8)).unflatten(1, (3, 2))
        before = model(videos).logits
        for axis in (1, 4, 6):  # whole patches change places along time, rows, columns
            moved = patches.roll(1, axis).flatten(6, 7).flatten(4, 5).flatten(1, 2)
            difference = (model(moved).logits - before).abs().max()
            assert (difference < 1e-4) == (encoding == "none"), axis

    @pytest.mark.parametrize("encoding", ["rotary", "rotary_mixed", "learned_rotary"])
    def test_rotation_leaves_what_is_beyond_a_multiple_of_six(self, encoding):
        """Heads of 8 channels: one pair for each axis, and one that stays (at first, where it is learned)."""
        tokens = PatchTokens(
            torch.zeros(1, 1, 32), torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[3, 4, 4]])
        )
        cosine, sine = fresh(encoding).rotation(tokens, 0)
        assert cosine.shape[-1] == 8
        assert (cosine[..., [3, 7]] == 1).all() and (sine[..., [3, 7]] == 0).all()
        assert (sine[..., :3].abs() > 1e-3).all()

    def test_mixed_axes_start_at_right_angles(self):
        frequencies = fresh("rotary_mixed", hidden_size=48).frequencies.detach()  # (L, heads, 3, 6), two each
        first = frequencies[..., ::2]
        product = first.mT @ first
        torch.testing.assert_close(product, torch.eye(3).expand_as(product), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("unit", ["patches", "native", "normalized"])
    def test_rotary_counts_in_the_units_that_are_asked_for(self, unit):
        part = fresh({"type": "rotary", "coordinates": unit})
        tokens = PatchTokens(
            torch.zeros(1, 1, 32), torch.tensor([[[3.0, 4.0, 2.0]]]), torch.tensor([[6, 8, 8]])
        )
        expected = {
            "patches": [3.0, 4.0, 2.0],
            "native": [1.5, 2.0, 1.0],
            "normalized": [
                2 * math.pi * ((place + 0.5) / side * 2 - 1) for place, side in ((3, 6), (4, 8), (2, 8))
            ],
        }
        assert part.places(tokens)[0, 0].tolist() == pytest.approx(expected[unit], abs=1e-5)

    def test_alibi_is_the_distance_in_three_dimensions(self):
        tokens = PatchTokens(
            torch.zeros(1, 2, 32),
            torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]]]),
            torch.tensor([[3, 4, 4]]),
        )
        assert fresh("alibi").bias(tokens, 0, 0)[0, 0, 0, 1].item() == pytest.approx(-3 * 2**-2)


def fresh(encoding: str, **fields):
    return AdaptiveViTModel(video_config(position_encoding=encoding, **fields)).embeddings.position_encoding


def position_encoding(name: str):
    """One whose parameters are those of no particular time."""
    part = fresh(name)
    with torch.no_grad():
        for value in part.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return part


class TestSelection:
    @pytest.mark.parametrize("name", [*PIXEL_SCORERS, *VOLUME_SCORERS])
    def test_patches_score_alike_in_a_video_and_cut(self, name):
        whole = ImagePatches.from_images(torch.randn(2, 3, 8, 24, 32), (2, 8, 8))
        apart = ImagePatches(whole.pixels.flatten(1, 3), whole.coordinates, whole.grid)
        scores = pixel_scores(name, whole, 7)
        assert scores.shape == (2, 48) and torch.isfinite(scores).all()
        torch.testing.assert_close(pixel_scores(name, apart, 7), scores, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["variance", "gradient", "entropy"])
    def test_a_still_clip_scores_as_its_frame(self, name):
        frame = torch.randn(1, 3, 24, 32)
        still = ImagePatches.from_images(frame[:, :, None].expand(-1, -1, 4, -1, -1), (2, 8, 8))
        of_frame = pixel_scores(name, ImagePatches.from_images(frame, 8), 4)
        torch.testing.assert_close(pixel_scores(name, still, 4), of_frame.repeat(1, 2), atol=1e-5, rtol=1e-5)

    def test_saliency_is_that_of_the_frames(self):
        videos = torch.randn(1, 3, 4, 32, 32)
        found = pixel_scores("saliency", ImagePatches.from_images(videos, (2, 8, 8)), 4)
        frames = ImagePatches.from_images(videos[0].transpose(0, 1), 8)
        expected = pixel_scores("saliency", frames, 4).unflatten(0, (2, 2)).mean(1).view(1, -1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_motion_finds_what_moves_among_what_is_bright(self):
        videos = torch.zeros(1, 6, 3, 32, 32)
        videos[:, :, :, 8:16, 8:16] = 5 * torch.randn(3, 8, 8)  # bright, and still
        for frame in range(6):
            videos[:, frame, :, 20, 24 + frame] = 1
        model = AdaptiveViTModel(video_config(patch_selector="motion", num_selected_patches=3)).eval()
        outputs = model(videos)
        assert outputs.selected_patches.tolist() == [[2 * 4 + 3, 16 + 2 * 4 + 3, 32 + 2 * 4 + 3]]
        assert outputs.patch_scores.count_nonzero() == 3

    @pytest.mark.parametrize("grid", [(1, 1, 1), (4, 4, 4), (2, 7, 3), (9, 2, 2)])
    def test_uniform_is_a_lattice_of_as_many_as_are_asked_for(self, grid):
        patches = ImagePatches.from_images(torch.zeros(1, 1, *(2 * side for side in grid)), (2, 2, 2))
        for number in range(1, math.prod(grid) + 1):
            scores = pixel_scores("uniform", patches, number)
            assert (scores == 2).sum() == number
        if grid == (4, 4, 4):
            kept = patches.coordinates[0][pixel_scores("uniform", patches, 8)[0] == 2]
            assert kept.tolist() == [[t, r, c] for t in (1, 3) for r in (1, 3) for c in (1, 3)]

    def test_random_differs_from_frame_to_frame(self):
        patches = ImagePatches.from_images(torch.zeros(1, 1, 8, 16, 16), (2, 2, 2))
        scores = pixel_scores("random", patches, 4).view(4, -1)
        assert len(scores.unique()) == scores.numel()

    @every_selection
    def test_a_video_alone_and_in_a_batch(self, selection):
        model = AdaptiveViTForVideoClassification(video_config(**selection)).eval()
        videos = clips(3, frames=5, height=40)
        together = model(videos)
        for index in range(3):
            alone = model(videos[index : index + 1])
            torch.testing.assert_close(alone.logits[0], together.logits[index], atol=1e-4, rtol=1e-4)
            assert torch.equal(alone.selected_patches[0], together.selected_patches[index])

    @every_selection
    def test_training_gives_every_parameter_a_gradient(self, selection):
        model = AdaptiveViTForVideoClassification(video_config(**selection)).train()
        model(clips(3), labels=torch.tensor([0, 1, 2])).loss.backward()
        without = [name for name, value in model.named_parameters() if value.grad is None]
        assert without == []

    def test_the_given_choice_is_computed_on(self):
        model = AdaptiveViTModel(video_config()).eval()
        videos, chosen = clips(), torch.tensor([[47, 3, 20], [0, 17, -1]])
        outputs = model(videos, selected_patches=chosen)
        assert outputs.selected_patches.tolist() == chosen.tolist()
        assert outputs.patch_coordinates[0].tolist() == [[2, 3, 3], [0, 0, 3], [1, 1, 0]]
        with pytest.raises(ValueError, match="48"):
            model(videos, selected_patches=torch.tensor([[48], [0]]))

    def test_a_scout_sees_a_short_small_video(self):
        config = video_config(
            patch_selector={"type": "attention", "num_layers": 2, "thumbnail_size": [2, 16, 16]},
            thumbnail_context=[2, 16, 16],
        )
        model = AdaptiveViTModel(config).eval()
        outputs = model(clips(1, frames=12, height=64, width=64))
        assert outputs.last_hidden_state.shape[1] == 1 + 4 + 6


class TestBackbone:
    @every_selection
    def test_maps_have_the_full_grid(self, selection):
        model = AdaptiveViTBackbone(video_config(**selection, out_features=["stem", "stage3"])).eval()
        maps = model(clips(frames=8, height=40)).feature_maps
        assert [tuple(one.shape) for one in maps] == [(2, 32, 4, 5, 4)] * 2
        assert all(torch.isfinite(one).all() for one in maps)

    def test_kept_patches_are_where_they_were(self):
        model = AdaptiveViTBackbone(video_config(patch_selector="variance")).eval()
        videos = clips()
        outputs = model(videos)
        (states,) = outputs.feature_maps
        encoder = AdaptiveViTModel(model.config, add_pooling_layer=False).eval()
        encoder.load_state_dict(model.state_dict())
        hidden = encoder(videos).last_hidden_state[:, 1:]
        kept = states.flatten(2).mT.gather(1, outputs.selected_patches[..., None].expand(-1, -1, 32))
        torch.testing.assert_close(kept, hidden, atol=1e-5, rtol=1e-5)


REFUSED = {
    "sinusoidal_2d of videos": (video_config, {"position_encoding": "sinusoidal_2d"}, "'sinusoidal_3d'"),
    "sinusoidal_3d of images": (tiny_config, {"position_encoding": "sinusoidal_3d"}, "set num_frames"),
    "motion of images": (tiny_config, {"patch_selector": "motion"}, "set num_frames"),
    "motion of one frame": (video_config, {"patch_selector": "motion", "tubelet_size": 1}, "tubelet_size=2"),
    "too few frames": (video_config, {"num_frames": 1}, "less than one patch of tubelet_size=2"),
    "too few frames of a probe": (
        video_config,
        {"patch_selector": {"type": "attention", "thumbnail_size": [1, 32, 32]}},
        r"thumbnail_size=\[1, 32, 32\].*at least \[2, 8, 8\]",
    ),
    "too few frames of a thumbnail": (
        video_config,
        {"thumbnail_context": [1, 32, 32]},
        r"thumbnail_context=\[1, 32, 32\].*at least \[2, 8, 8\]",
    ),
    "too few frames of a scorer": (
        video_config,
        {"patch_selector": {"type": "policy", "thumbnail_size": [1, 32, 32]}},
        r"thumbnail_size=\[1, 32, 32\].*at least \[2, 4, 4\]",
    ),
    "a probe's frames of images": (
        tiny_config,
        {"patch_selector": {"type": "attention", "thumbnail_size": [4, 32, 32]}},
        r"thumbnail_size=\[4, 32, 32\] must be a number of pixels or a pair \(height, width\)\.",
    ),
    "no frames in a patch": (video_config, {"tubelet_size": 0}, "at least 1 frame"),
    "a CNN of patches": (video_config, {"patch_embedding": "convolutional"}, "use 'linear'"),
    "a hybrid": (video_config, {"backbone_config": {"model_type": "bit"}}, "leave out one of them"),
    "heads of 4 channels": (
        video_config,
        {"position_encoding": "rotary", "num_attention_heads": 8},
        "at least 6",
    ),
    "a pair of rotary": (
        video_config,
        {"position_encoding": {"type": "rotary", "reference_grid": [4, 4]}},
        "three numbers",
    ),
    "unknown": (video_config, {"position_encoding": "spiral"}, "sinusoidal_3d"),
}


@pytest.mark.parametrize(("config", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_at_configuration(config, fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    "model_class",
    [
        AdaptiveViTForImageClassification,
        AdaptiveViTForMaskedImageModeling,
        AdaptiveViTForPreTraining,
        AdaptiveViTForSemanticSegmentation,
    ],
)
def test_classes_of_images_refuse_videos(model_class):
    with pytest.raises(ValueError, match="there are AdaptiveViTForVideoClassification"):
        model_class(video_config())


def test_the_class_of_videos_refuses_images():
    with pytest.raises(ValueError, match="Set num_frames"):
        AdaptiveViTForVideoClassification(tiny_config())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 32, 32), r"\(B, T, C, H, W\)"),
        ((2, 6, 1, 32, 32), "1 channels"),
        (
            (2, 1, 3, 32, 32),
            r"Videos of 1x32x32 \(frames, rows, columns\) are smaller than one patch of 2x8x8",
        ),
        ((2, 48, 384), "patch_coordinates"),
    ],
)
def test_videos_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveViTModel(video_config())(torch.randn(shape))


def test_a_model_of_images_says_what_a_video_needs():
    with pytest.raises(ValueError, match="num_frames"):
        AdaptiveViTModel(tiny_config())(clips())


def test_other_lengths_are_refused_where_that_is_asked_for():
    model = AdaptiveViTModel(video_config()).eval()
    model(clips(), interpolate_pos_encoding=False)
    with pytest.raises(ValueError, match="num_frames=6"):
        model(clips(frames=8), interpolate_pos_encoding=False)


def test_gray_volumes_have_their_slices_as_frames():
    config = AdaptiveViTConfig(
        **{**TINY, "num_channels": 1, "num_frames": 12, "tubelet_size": 4, "patch_size": 4}
    )
    model = AdaptiveViTForVideoClassification(config).eval()
    assert model.vit.embeddings.patch_embeddings.projection.weight.shape == (32, 1, 4, 4, 4)
    assert model(torch.randn(2, 12, 1, 32, 32)).logits.shape == (2, 5)


def test_a_scorer_sees_all_of_a_video_whose_frames_are_no_whole_tubelets():
    config = video_config(num_frames=5, tubelet_size=2, patch_selector="policy", num_selected_patches=4)
    model = AdaptiveViTModel(config).eval()
    videos = torch.randn(1, 6, 3, 32, 32, requires_grad=True)
    patches = ImagePatches.from_images(videos.transpose(1, 2), (2, 8, 8))
    (model.selector.score(patches, 4, None) ** 3).sum().backward()
    assert (videos.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()
