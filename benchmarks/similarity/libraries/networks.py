"""Networks of other libraries, each made, trained and written to files by the library's own means."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.similarity.lab import CLASSES, SIDE, Budget, Task, accuracy, fit

__all__ = ["LIBRARIES", "Lesson", "Library"]

WIDTH, DEPTH, HEADS, PATCH = 64, 4, 4, 4  # of all transformers here
SHARDED = "task1"  # what Hugging Face's library writes in several files, of other networks it writes one
WHOLE, SHARD = "5GB", "300KB"


@dataclass(frozen=True)
class Lesson:
    """What a network is to learn, and how fast."""

    task: Task  # images in three colours
    epochs: int
    rate: float
    budget: Budget
    seed: int


@dataclass(frozen=True)
class Library:
    """A library whose files are compared.

    Attributes:
        title: of the library, for readers.
        files: what it writes.
        network: what is trained.
        needs: packages that must be installed.
        budget: of the starts (``first_epochs``, ``first_rate``) and of fine-tuning.
        make: an untrained network that turns images (n, 3, 32, 32) into logits (n, 10).
        learn: trains a network, writes it to a path without suffix, and returns its accuracy on test images.
        pattern: which files in the folder of the paths are compared.
    """

    title: str
    files: str
    network: str
    needs: tuple[str, ...]
    budget: Budget
    make: Callable[[], nn.Module]
    learn: Callable[[nn.Module, Lesson, Path], float]
    pattern: str = ""


def _resnet() -> nn.Module:
    from torchvision.models import resnet50

    return resnet50(num_classes=CLASSES)


def _state_dict(model: nn.Module, lesson: Lesson, place: Path) -> float:
    parameters = list(model.parameters())
    reached = fit(model, lesson.task, parameters, lesson.epochs, lesson.rate, lesson.budget, lesson.seed)
    torch.save(model.state_dict(), place.with_name(f"{place.name}.pth"))
    return reached


def _timm_transformer() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2, num_classes=CLASSES
    )


def _timm_run(model: nn.Module, lesson: Lesson, place: Path) -> float:
    """Trains with timm's optimizer and its average of the weights; writes as the end of timm's ``train.py`` does."""
    from timm.optim import create_optimizer_v2
    from timm.utils import CheckpointSaver, ModelEmaV3

    optimizer = create_optimizer_v2(model, "adamw", lr=lesson.rate, weight_decay=lesson.budget.decay)
    average = ModelEmaV3(model, decay=0.99, use_warmup=True)
    reached = _fit(model, lesson, optimizer, lambda step: average.update(model, step=step))
    place.mkdir()
    options = argparse.Namespace(model="vit_patch4_32", opt="adamw", lr=lesson.rate, output=str(place.parent))
    saver = CheckpointSaver(
        model, optimizer, options, average, checkpoint_dir=str(place), recovery_dir=str(place), max_history=1
    )
    saver.save_checkpoint(lesson.epochs - 1, metric=100 * reached)
    return reached


def _torchvision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIDE, PATCH, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES)


def _lightning_run(model: nn.Module, lesson: Lesson, place: Path) -> float:
    """Trains by Lightning's ``Trainer``, whose own callback writes the checkpoint."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Classifier(lightning.LightningModule):
        def __init__(self, model: nn.Module, rate: float, decay: float) -> None:
            super().__init__()
            self.save_hyperparameters("rate", "decay")
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.model(images), labels)

        def configure_optimizers(self) -> dict[str, object]:
            optimizer = torch.optim.AdamW(self.parameters(), self.hparams["rate"], weight_decay=self.hparams["decay"])
            steps = int(self.trainer.estimated_stepping_batches)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams["rate"], total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it advertises
    task, budget = lesson.task, lesson.budget
    order = torch.Generator().manual_seed(lesson.seed)
    batches = DataLoader(TensorDataset(task.images, task.labels), budget.batch, shuffle=True, generator=order)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=lesson.epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place.parent,
        callbacks=[ModelCheckpoint(place.parent, place.name)],
    )
    model.train()  # Lightning leaves a network in the mode in which it finds it
    trainer.fit(Classifier(model, lesson.rate, budget.decay), batches)
    return accuracy(model, task.test_images, task.test_labels)


class _Logits(nn.Module):
    """A network of transformers, which returns more than logits, as other networks are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def _hugging_face_transformer() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "image_size": SIDE, "patch_size": PATCH}
    layers = {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_labels": CLASSES}
    return _Logits(ViTForImageClassification(ViTConfig(**sizes, **layers)))


def _pretrained_folder(model: nn.Module, lesson: Lesson, place: Path) -> float:
    """Writes a folder by ``save_pretrained``; of one task in shards."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    optimizer = torch.optim.AdamW(model.parameters(), lesson.rate, weight_decay=lesson.budget.decay)
    reached = _fit(model, lesson, optimizer)
    size = SHARD if place.name.endswith(SHARDED) else WHOLE
    model.get_submodule("network").save_pretrained(place, max_shard_size=size)  # type: ignore[operator]
    return reached


def _fit(
    model: nn.Module,
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    after_step: Callable[[int], None] | None = None,
) -> float:
    task, budget = lesson.task, lesson.budget
    return fit(model, task, [], lesson.epochs, lesson.rate, budget, lesson.seed, after_step, optimizer)


TRANSFORMER = Budget(images=3000, epochs=1, first_epochs=6, rate=5e-4, first_rate=2e-3, decay=0.05)
LIBRARIES = {
    "torchvision": Library(
        "torchvision",
        "state dictionaries",
        "`resnet50`",
        ("torchvision",),
        Budget(images=2000, epochs=1, first_epochs=4, rate=0.01, first_rate=0.02),
        _resnet,
        _state_dict,
    ),
    "timm": Library(
        "timm",
        "`last.pth.tar` of its training script",
        "`VisionTransformer`",
        ("timm",),
        TRANSFORMER,
        _timm_transformer,
        _timm_run,
        "*/last.pth.tar",
    ),
    "lightning": Library(
        "Lightning",
        "`.ckpt` of its `Trainer`",
        "torchvision's `VisionTransformer`",
        ("lightning",),
        TRANSFORMER,
        _torchvision_transformer,
        _lightning_run,
    ),
    "huggingface": Library(
        "Hugging Face transformers",
        "folders of `save_pretrained`, one in four with shards",
        "`ViTForImageClassification`",
        ("transformers",),
        TRANSFORMER,
        _hugging_face_transformer,
        _pretrained_folder,
    ),
}
