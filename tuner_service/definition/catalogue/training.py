"""What the training loop itself knows, and the losses."""

from tuner_service.definition.catalogue.entries import Entry, Loss, by_name
from tuner_service.definition.options import Option

TRAINING = by_name(
    Entry(
        name="training",
        description="What the training loop itself knows.",
        options=(
            Option(
                name="epochs",
                type="int",
                default=20,
                low=1,
                high=100_000,
                fusible=True,
                description="Passes over the training part.",
            ),
            Option(
                name="batch_size",
                type="int",
                default=32,
                low=1,
                high=1_000_000,
                also=("full",),
                description='Rows per optimizer step, or "full" for the whole training part.',
            ),
            Option(
                name="label_smoothing",
                type="float",
                default=0.0,
                low=0.0,
                high=1.0,
                high_open=True,
                fusible=True,
                description="Share of the target spread over all classes (cross_entropy only).",
            ),
            Option(
                name="class_weight",
                type="weights",
                default=None,
                also=(None,),
                description="Factor of each row's training loss, by its class: balanced is "
                "rows / (classes x rows of the class) over the training part, as in scikit-learn.",
            ),
            Option(
                name="pos_weight",
                type="float",
                default=None,
                low=0.0,
                low_open=True,
                also=(None,),
                description="The same for the positive of two classes alone; the other has 1.",
            ),
            Option(
                name="threshold",
                type="float",
                default=None,
                low=0.0,
                high=1.0,
                also=("f1", "balanced_accuracy", "accuracy", None),
                searchable=False,
                description="Probability from which on the positive of two classes is predicted: a "
                "number, or the one that is best for this metric on the validation part when a "
                "trial ends; null: where it is the likelier.",
            ),
            Option(
                name="l1",
                type="float",
                default=0.0,
                low=0.0,
                fusible=True,
                description="L1 penalty on all weights, as a loss term.",
            ),
            Option(
                name="gradient_clip",
                type="float",
                default=None,
                low=0.0,
                low_open=True,
                also=(None,),
                fusible=True,
                description="Largest norm of the gradient over all weights; null: no limit.",
            ),
            Option(
                name="random_flip",
                type="float",
                default=0.0,
                low=0.0,
                high=1.0,
                fusible=True,
                description="Probability with which a training image is mirrored left to right.",
            ),
            Option(
                name="random_crop",
                type="int",
                default=0,
                low=0,
                high=64,
                fusible=True,
                description="Training images are padded by this many pixels (copies of the "
                "outermost) on each side, then cropped to their size at random.",
            ),
            Option(
                name="seed",
                type="int",
                default=0,
                low=0,
                high=2**31 - 1,
                fusible=True,
                description="Seeds initial weights, data order, dropout, flips and crops.",
            ),
        ),
    )
)

LOSSES = by_name(
    Loss(name="cross_entropy", description="Softmax cross-entropy.", task="classification"),
    Loss(
        name="binary_cross_entropy",
        description="Cross-entropy of one logit; two classes only.",
        task="classification",
        classes=2,
    ),
    Loss(
        name="focal",
        description="Cross-entropy times (1 - p)², p the true class's probability: what is certain "
        "already counts little.",
        task="classification",
    ),
    Loss(name="mse", description="Mean squared error.", task="regression"),
    Loss(name="mae", description="Mean absolute error.", task="regression"),
    Loss(name="huber", description="Huber loss with threshold 1.", task="regression"),
)
