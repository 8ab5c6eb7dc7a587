"""The models that ship with mae_bench, registered for the bundled suite; a name ends in its training seed."""

from mae_bench import model_fixture


@model_fixture(suite="fashion_mnist", arm="mae_ft", training_seed=0)
def mae_ft_s0():
    """ViT, 0.3 M parameters, pretrained as a masked autoencoder (75 % masked), then fine-tuned."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_ft_s0")


@model_fixture(suite="fashion_mnist", arm="mae_ft", training_seed=1)
def mae_ft_s1():
    """mae_ft_s0 trained again from seed 1."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_ft_s1")


@model_fixture(suite="fashion_mnist", arm="mae_ft", training_seed=2)
def mae_ft_s2():
    """mae_ft_s0 trained again from seed 2."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_ft_s2")


@model_fixture(suite="fashion_mnist", arm="supervised", training_seed=0)
def supervised_s0():
    """The same ViT trained supervised from scratch, with the same training FLOPs."""
    from mae_bench.models.zoo import bundled

    return bundled("supervised_s0")


@model_fixture(suite="fashion_mnist", arm="supervised", training_seed=1)
def supervised_s1():
    """supervised_s0 trained again from seed 1."""
    from mae_bench.models.zoo import bundled

    return bundled("supervised_s1")


@model_fixture(suite="fashion_mnist", arm="supervised", training_seed=2)
def supervised_s2():
    """supervised_s0 trained again from seed 2."""
    from mae_bench.models.zoo import bundled

    return bundled("supervised_s2")


@model_fixture(suite="fashion_mnist", arm="cnn", training_seed=0)
def cnn_s0():
    """A residual CNN of the same size, trained supervised."""
    from mae_bench.models.zoo import bundled

    return bundled("cnn_s0")


@model_fixture(suite="fashion_mnist", arm="mae_probe", training_seed=0)
def mae_probe_s0():
    """The pretrained encoder that mae_ft_s0 starts from, frozen, with a linear classifier."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_probe_s0")


@model_fixture(suite="fashion_mnist", arm="mae_probe", training_seed=1)
def mae_probe_s1():
    """mae_probe_s0 trained again from seed 1."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_probe_s1")


@model_fixture(suite="fashion_mnist", arm="mae_probe", training_seed=2)
def mae_probe_s2():
    """mae_probe_s0 trained again from seed 2."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_probe_s2")


@model_fixture(suite="fashion_mnist", head=False, arm="mae_pretrained", training_seed=0)
def mae_pretrained_s0():
    """The pretrained encoder alone, for what happens inside it."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_pretrained_s0")


@model_fixture(suite="fashion_mnist", head=False, arm="mae_pretrained", training_seed=1)
def mae_pretrained_s1():
    """mae_pretrained_s0 trained again from seed 1."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_pretrained_s1")


@model_fixture(suite="fashion_mnist", head=False, arm="mae_pretrained", training_seed=2)
def mae_pretrained_s2():
    """mae_pretrained_s0 trained again from seed 2."""
    from mae_bench.models.zoo import bundled

    return bundled("mae_pretrained_s2")


@model_fixture(suite="fashion_mnist", arm="supervised_ep", training_seed=0, full=True)
def supervised_ep_s0():
    """The same ViT trained supervised from scratch, for the labelled epochs of mae_ft_s0."""
    from mae_bench.models.zoo import bundled

    return bundled("supervised_ep_s0")
