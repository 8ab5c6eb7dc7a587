"""The models that ship with mae_bench, registered for the bundled suite."""

from mae_bench import model_fixture


@model_fixture(suite="fashion_mnist", arm="mae_ft", training_seed=0)
def mae_ft_s0():
    """ViT, 0.3 M parameters, pretrained as a masked autoencoder (75 % masked), then fine-tuned."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_ft_s0")


@model_fixture(suite="fashion_mnist", arm="supervised", training_seed=0)
def supervised_s0():
    """The same ViT trained supervised from scratch, with the same training FLOPs."""
    from mae_bench.models.zoo import bundled

    return bundled("supervised_s0")


@model_fixture(suite="fashion_mnist", arm="cnn", training_seed=0)
def cnn_s0():
    """A residual CNN of the same size, trained supervised."""
    from mae_bench.models.zoo import bundled

    return bundled("cnn_s0")
