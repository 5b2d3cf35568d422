"""Small models of Hugging Face and torchvision, by configuration, without weights."""

import pytest
import torch

from interpretable_training.attribution import EigenCAM, GradCAM
from interpretable_training.batches.read import pick
from interpretable_training.callbacks.watching.explanation_memo import explain_images
from interpretable_training.tasks import Detection, find_network

pytestmark = pytest.mark.slow
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def hugging_face(model, config, **options):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def segformer():
    options = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_labels": 4, "decoder_hidden_size": 16}
    return hugging_face("SegformerForSemanticSegmentation", "SegformerConfig", **options)


def vit():
    options = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return hugging_face("ViTForImageClassification", "ViTConfig", **options, image_size=64, num_labels=3)


def detr():
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    options = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5, "num_labels": 3}
    options |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    return hugging_face(
        "DetrForObjectDetection",
        "DetrConfig",
        **options,
        decoder_ffn_dim=16,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
    )


def clip():
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 20, "eos_token_id": 19, "bos_token_id": 0, "pad_token_id": 1}
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vision |= {"image_size": 64, "patch_size": 16}
    return hugging_face("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=8)


def faster_rcnn():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    options = {"weights": None, "weights_backbone": None, "num_classes": 3, "min_size": 64, "max_size": 64}
    return fasterrcnn_mobilenet_v3_large_320_fpn(**options, box_score_thresh=0.0)


TEXT = {"input_ids": torch.tensor([[0, 5, 19], [0, 7, 19]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
MASK = torch.zeros(2, 64, 64, dtype=torch.long)
CASES = {
    "ViT": (vit, {"pixel_values": IMAGES, "labels": torch.tensor([0, 2])}, "auto", "classification"),
    "SegFormer": (segformer, {"pixel_values": IMAGES, "labels": MASK}, "auto", "segmentation"),
    "DETR": (detr, {"pixel_values": IMAGES, "labels": [{}, {}]}, Detection(threshold=0.0), "detection"),
    "CLIP": (clip, {"pixel_values": IMAGES, **TEXT}, "auto", "embedding"),
    "Faster R-CNN": (faster_rcnn, IMAGES, Detection(threshold=0.0), "detection"),
}


@pytest.mark.parametrize("case", CASES)
def test_models_are_found_and_explained(case):
    make, batch, task, name = CASES[case]
    torch.manual_seed(0)
    model, picked = make().eval(), pick(batch)
    reading = find_network(SimpleModule(model), picked, task=task)
    assert reading.task.name == name
    explained = explain_images({"gradcam": GradCAM(), "eigencam": EigenCAM()}, reading, picked, "pred")
    assert explained.errors == {}
    maps = explained.maps["pred"]
    assert maps["gradcam"].shape == maps["eigencam"].shape == (2, 64, 64)
    assert maps["eigencam"].std() > 0
    assert explained.caption(0, int(explained.columns[0]), None)
    assert explained.prob(explained.columns).isfinite().all()


class SimpleModule(torch.nn.Module):
    """Holds a network, and calls it in no way."""

    def __init__(self, model):
        super().__init__()
        self.model = model
