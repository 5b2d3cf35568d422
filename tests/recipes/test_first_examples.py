"""The pictures of a study show the first image of each class, also where classes come in any order."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.data import SeededDataModule
from interpretable_training.recipes import EvaluationRecipe


class Numbered(SeededDataModule):
    """Images that are their own number; class 2 comes twice before class 0 comes at all."""

    def setup(self, stage=None):
        self.splits["val"] = TensorDataset(torch.arange(7.0)[:, None, None, None], torch.tensor([2, 2, 1, 0, 0, 3, 1]))

    def val_dataloader(self):
        return DataLoader(self.splits["val"], 3)


def test_the_first_of_each_class_in_the_order_of_the_classes():
    images, target, _ = EvaluationRecipe(None, None, Numbered(), {}).examples()
    assert target.tolist() == [0, 1, 2, 3]
    assert images.flatten().tolist() == [3, 2, 0, 5]


def test_no_more_classes_than_wanted():
    images, target, printed = EvaluationRecipe(None, None, Numbered(), {}).examples(2)
    assert target.tolist() == [1, 2]
    assert images.flatten().tolist() == [2, 0] == torch.stack(printed["image"]).flatten().tolist()
