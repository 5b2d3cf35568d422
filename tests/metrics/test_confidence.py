"""AD, AI, AG and ADD: numbers by hand, how images are masked, what happens at the ends of the scale."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM
from interpretable_training.metrics import AverageDrop, AverageDropInDeletion, AverageGain, AverageIncrease
from interpretable_training.metrics.core.rescoring import scored_batch

CLEAN, MASKED = torch.tensor([0.8, 0.5]).double(), torch.tensor([0.4, 0.75]).double()
RELATED = [AverageDrop, AverageIncrease, AverageGain]


def one(value):
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(("metric", "values"), [(AverageDrop, [50, 0]), (AverageIncrease, [0, 100])])
def test_worked_out_by_hand(metric, values):
    metric = metric()
    assert_close(metric.measure(prob=CLEAN, prob_masked=MASKED), torch.tensor(values).double(), rtol=0, atol=1e-9)
    metric.update(CLEAN, MASKED)
    assert_close(metric.compute(), torch.tensor(sum(values) / 2))


def test_gain_worked_out_by_hand():
    assert_close(
        AverageGain().measure(prob=CLEAN, prob_masked=MASKED), torch.tensor([0, 50.0]).double(), rtol=0, atol=1e-9
    )
    metric = AverageGain()
    metric.update(CLEAN, MASKED)
    assert_close(metric.compute(), torch.tensor(25.0))


def test_drop_in_deletion_is_not_clamped_unless_asked():
    """(.8 - .4) / .8 = .5 and (.5 - .75) / .5 = -.5."""
    values = AverageDropInDeletion().measure(prob=CLEAN, prob_deleted=MASKED)
    assert_close(values, torch.tensor([50.0, -50]).double(), rtol=0, atol=1e-9)
    clamped = AverageDropInDeletion(clamp=True).measure(prob=CLEAN, prob_deleted=MASKED)
    assert_close(clamped, torch.tensor([50.0, 0]).double(), rtol=0, atol=1e-9)


def test_the_absolute_drop_and_the_signed_increase():
    assert_close(AverageDrop(relative=False).measure(prob=CLEAN, prob_masked=MASKED), torch.tensor([40.0, 0]).double())
    signed = AverageIncrease(signed=True)
    p, o = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.4, 0.6, 0.5])
    assert signed.measure(prob=p, prob_masked=o).tolist() == [-100, 100, 0]


def test_an_image_drops_or_gains_but_not_both():
    p, o = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)).double()
    drop, gain = (metric().measure(prob=p, prob_masked=o) for metric in (AverageDrop, AverageGain))
    assert (drop * gain == 0).all()
    assert ((drop > 0) | (gain > 0)).all()


@pytest.mark.parametrize("metric", RELATED)
def test_equality_is_no_change(metric):
    assert metric().measure(prob=CLEAN, prob_masked=CLEAN).tolist() == [0, 0]


@pytest.mark.parametrize("metric", RELATED)
def test_a_map_of_ones_hides_nothing(metric, network, images, target):
    values = metric().measure(model=network, images=images, saliency=torch.ones(5, 12, 8), target=target)
    assert_close(values, torch.zeros(5).double(), rtol=0, atol=1e-9)


def test_nothing_drops_from_zero_and_nothing_rises_above_one():
    zero, full = one(0.0), one(1.0)
    assert AverageDrop().measure(prob=zero, prob_masked=full).item() == 0
    assert AverageDropInDeletion().measure(prob=zero, prob_deleted=full).item() == 0
    assert AverageGain().measure(prob=full, prob_masked=zero).item() == 0
    assert AverageGain().measure(prob=full, prob_masked=full).item() == 0
    assert AverageDrop().measure(prob=full, prob_masked=zero).item() == 100
    assert AverageGain().measure(prob=zero, prob_masked=full).item() == 100


def test_zero_and_one_count_as_images():
    metric = AverageGain()
    metric.update(torch.tensor([1.0, 0.5]), torch.tensor([0.2, 0.75]))
    assert (int(metric.count), int(metric.n_invalid)) == (2, 0)
    assert_close(metric.compute(), torch.tensor(25.0))


def test_what_the_map_hides_is_lost(scored):
    """p is the mean of the image: a map of zeros makes it 0, its complement shows all."""
    model, x = scored(lambda z: z.flatten(1).mean(1)), torch.full((1, 1, 2, 2), 0.5).double()
    facts = {"model": model, "images": x, "target": 1}
    nothing, all_ = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    assert AverageDrop().measure(**facts, saliency=nothing).item() == 100
    assert AverageDropInDeletion().measure(**facts, saliency=nothing).item() == pytest.approx(0, abs=1e-9)
    assert AverageDropInDeletion().measure(**facts, saliency=all_).item() == 100
    half = torch.tensor([[[1.0, 1], [0, 0]]])
    assert AverageDrop().measure(**facts, saliency=half).item() == pytest.approx(50, abs=1e-9)
    assert AverageDropInDeletion().measure(**facts, saliency=half).item() == pytest.approx(50, abs=1e-9)


def test_a_constant_model_loses_nothing(constant, images, saliency):
    facts = {"model": constant, "images": images, "saliency": saliency, "target": 1}
    for metric in (AverageDrop(), AverageIncrease(), AverageGain(), AverageDropInDeletion()):
        assert_close(metric.measure(**facts), torch.zeros(5).double(), rtol=0, atol=1e-9)


def test_fake_cam_hardly_drops(scored):
    """Without its first pixel a mean over 400 equal pixels falls by 1/400."""
    model, x = scored(lambda z: z.flatten(1).mean(1)), torch.full((1, 1, 20, 20), 0.5).double()
    S = FakeCAM()(model, x, 1)
    assert AverageDrop().measure(model=model, images=x, saliency=S, target=1).item() == pytest.approx(0.25, abs=1e-9)


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def statistics():
    return (torch.tensor(v).double().view(1, 3, 1, 1) for v in (MEAN, STD))


def test_masked_in_pixel_space_is_black(network, images, saliency, target, statistics):
    mean, std = statistics
    S = saliency[:, None]
    with torch.no_grad():
        seen = network(((images * std + mean) * S - mean) / std).softmax(1)[range(5), target]
        rest = network(((images * std + mean) * (1 - S) - mean) / std).softmax(1)[range(5), target]
        p = network(images).softmax(1)[range(5), target]
    facts = {"model": network, "images": images, "saliency": saliency, "target": target}
    options = {"mean": MEAN, "std": STD}
    assert_close(AverageDrop(**options).measure(**facts), 100 * (p - seen).relu() / p, rtol=0, atol=1e-9)
    assert_close(AverageGain(**options).measure(**facts), 100 * (seen - p).relu() / (1 - p), rtol=0, atol=1e-9)
    assert_close(AverageDropInDeletion(**options).measure(**facts), 100 * (p - rest) / p, rtol=0, atol=1e-9)


def test_masked_in_normalized_space_is_the_mean_color(network, images, saliency, target):
    with torch.no_grad():
        p, o = (network(x).softmax(1)[range(5), target] for x in (images, images * saliency[:, None]))
    expected = 100 * (p - o).relu() / p
    facts = {"model": network, "images": images, "saliency": saliency, "target": target}
    for options in ({"space": "normalized"}, {"space": "normalized", "mean": MEAN, "std": STD}, {}, {"preset": "adcc"}):
        assert_close(AverageDrop(**options).measure(**facts), expected, rtol=0, atol=1e-9)
    assert (AverageDrop(mean=MEAN, std=STD).measure(**facts) - expected).abs().max() > 1e-3


def test_topk_keeps_the_highest_pixels_as_they_are(mean):
    """The mean of an image of ones is the share of the pixels that stay."""
    x, S = torch.ones(1, 1, 4, 5).double(), torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0))
    for q in (10, 50, 100):
        metric = AverageDrop(topk=q, score="logit")
        drop = metric.measure(model=mean, images=x, saliency=S, target=1).item()
        assert drop == pytest.approx(100 - q, abs=1e-9)
        rest = AverageDropInDeletion(topk=q, score="logit").measure(model=mean, images=x, saliency=S, target=1).item()
        assert rest == pytest.approx(q, abs=1e-9)


def test_topk_keeps_the_right_ones(function):
    pixel = function(lambda z: torch.stack([0 * z[:, 0, 0, 0], z[:, 0, 1, 2]], 1))
    x, S = torch.ones(1, 1, 3, 3).double(), torch.zeros(1, 3, 3)
    S[0, 1, 2], S[0, 0, 0] = 0.2, 0.1
    facts = {"model": pixel, "images": x, "saliency": S, "target": 1}
    assert AverageDrop(topk=12, score="logit").measure(**facts).item() == 0  # round(1.08) = 1 pixel
    S[0, 0, 0] = 0.3
    assert AverageDrop(topk=12, score="logit").measure(**facts).item() == 100


def test_logits_that_are_not_positive_give_no_ratio():
    p, o = torch.tensor([2.0, -1, 0]), torch.tensor([1.0, -2, -1])
    metric = AverageDrop(score="logit")
    metric.update(p, o)
    assert metric.measure(prob=p, prob_masked=o).isnan().tolist() == [False, True, False]
    assert (int(metric.count), int(metric.n_invalid)) == (2, 1)
    with pytest.warns(UserWarning, match="leaves out 1 of 3"):
        assert_close(metric.compute(), torch.tensor(25.0))  # 50 and 0


def test_the_absolute_drop_of_logits_needs_no_sign():
    values = AverageDrop(score="logit", relative=False).measure(prob=one(-1.0), prob_masked=one(-3.0))
    assert values.item() == pytest.approx(200)


def test_several_labels_are_scored_by_the_sigmoid(network, images, saliency, target):
    with torch.no_grad():
        p, o = (network(x).sigmoid()[range(5), target] for x in (images, images * saliency[:, None]))
    metric = AverageDrop(score="sigmoid")
    values = metric.measure(model=network, images=images, saliency=saliency, target=target)
    assert_close(values, 100 * (p - o).relu() / p, rtol=0, atol=1e-9)


def test_four_metrics_score_three_images_each(scored, images, saliency):
    model = scored(lambda z: z.flatten(1).mean(1).sigmoid())
    with scored_batch(model, images, saliency, torch.ones(5, dtype=torch.long)) as scored:
        for metric in (AverageDrop(), AverageIncrease(), AverageGain(), AverageDropInDeletion()):
            metric.rows(scored)
    assert model.seen == 3 * 5


def test_spaces_that_coincide_share_a_pass(scored, images, saliency):
    """Without mean and std both multiply the normalized image."""
    model = scored(lambda z: z.flatten(1).mean(1).sigmoid())
    with scored_batch(model, images, saliency, torch.ones(5, dtype=torch.long)) as scored:
        for metric in (AverageDrop(), AverageDrop(space="normalized"), AverageDrop(preset="pytorch_grad_cam")):
            metric.rows(scored)
        AverageGain(space="normalized", mean=MEAN, std=STD).rows(scored)
    assert model.seen == 2 * 5


@pytest.mark.parametrize("options", [{}, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}])
def test_a_map_of_ones_changes_nothing_in_single_precision(network, images, target, options):
    """Not by rounding either, which would count as an increase."""
    facts = {"model": network.float(), "images": images.float(), "saliency": torch.ones(5, 12, 8), "target": target}
    for metric in (AverageDrop(**options), AverageIncrease(**options), AverageGain(**options)):
        assert metric.measure(**facts).tolist() == [0] * 5


def test_what_is_known_is_not_computed_again(scored, images, saliency):
    model = scored(lambda z: z.flatten(1).mean(1).sigmoid())
    facts = {"model": model, "images": images, "saliency": saliency, "target": 1}
    whole = AverageDrop().measure(**facts)
    p = torch.sigmoid(images.flatten(1).mean(1))
    model.sizes.clear()
    assert_close(AverageDrop().measure(**facts, prob=p), whole, rtol=0, atol=1e-9)
    assert model.seen == 5


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda: AverageGain(score="logit"), "no highest value"),
        (lambda: AverageGain(preset="torchcam"), "no highest value"),
        (lambda: AverageDrop(mean=MEAN), "mean and std together"),
        (lambda: AverageDrop(mean=MEAN, std=(0.2,)), "mean and std"),
        (lambda: AverageDrop(preset="thesi"), "preset to be one of"),
        (lambda: AverageDrop(space="pixels"), "space to be one of"),
        (lambda: AverageDrop(score="loss"), "score to be one of"),
        (lambda: AverageDrop(topk=0), "topk as a number above 0 and up to 100"),
        (lambda: AverageDrop(topk=101), "topk as a number above 0 and up to 100"),
    ],
)
def test_options_that_do_not_exist_are_refused(metric, message):
    with pytest.raises(ValueError, match=message):
        metric()
