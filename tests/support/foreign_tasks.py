"""Small projects with other tasks than classification, or with several inputs, as people write them."""

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 3


def as_masks(items):
    """The batches of Hugging Face's segmentation: the bright pixels are class 1."""
    images = torch.stack([image for image, _ in items])
    return {"pixel_values": images, "labels": (images.mean(1) > 0.5).long()}


def as_boxes(items):
    """The batches of torchvision's detectors: lists of images and of dicts."""
    side = items[0][0].shape[-1] // 2
    corners = [divmod(int(label), 2) for _, label in items]
    boxes = [torch.tensor([[c * side, r * side, (c + 1) * side, (r + 1) * side]]).float() for r, c in corners]
    labels = [label.reshape(1) + 1 for _, label in items]
    return [image for image, _ in items], [{"boxes": b, "labels": y} for b, y in zip(boxes, labels)]


def as_tables(items):
    """Dicts with an image and numbers."""
    images, labels = torch.stack([image for image, _ in items]), torch.stack([label for _, label in items])
    return {"image": images, "meta": images.mean((2, 3)), "label": labels}


def segformer():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16}
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=2))


def detecting_class(pl):
    """Return a module around a detector of torchvision under a package."""

    class Detecting(pl.LightningModule):
        def __init__(self):
            from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

            super().__init__()
            options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES + 1}
            options |= {"min_size": 64, "max_size": 64, "box_score_thresh": 0.0, "box_detections_per_img": 5}
            self.model = fasterrcnn_mobilenet_v3_large_320_fpn(**options)

        def forward(self, images):
            return self.model(images)

        def training_step(self, batch, batch_idx):
            return sum(self.model(*batch).values())

        def validation_step(self, batch, batch_idx):
            boxes = sum(len(detections["boxes"]) for detections in self.model(batch[0]))
            self.log("val/boxes", float(boxes), batch_size=len(batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.001)

    return Detecting


def with_table_class(Classifying):
    """Return a classifier of images and numbers."""

    class WithTable(Classifying):
        def __init__(self, model):
            super().__init__(model)
            self.head = nn.Linear(CLASSES + 3, CLASSES)

        def forward(self, image, meta):
            return self.head(torch.cat([self.model(image), meta], 1))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch["image"], batch["meta"]), batch["label"])

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

    return WithTable
