"""The models that ship with mae_bench, registered for the bundled suite, where a name ends in its training seed; and an
ImageNet field of published weights, which are downloaded when they are first asked for.
"""

from mae_bench import model_fixture
from mae_bench.suites import IMAGENET


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


# ------------------------------------------------------------------------------ ImageNet: weights that others published


@model_fixture(suite=IMAGENET, arm="mae_ft", training_seed=0)
def mae_vit_base(mae_weights):
    """ViT-B/16, pretrained as a masked autoencoder and fine-tuned by its authors."""
    from mae_bench.models.checkpoints import mae_finetuned

    return mae_finetuned("base", mae_weights("mae_vit_base"))


@model_fixture(suite=IMAGENET)
def mae_vit_large(mae_weights):
    """ViT-L/16, pretrained as a masked autoencoder and fine-tuned by its authors."""
    from mae_bench.models.checkpoints import mae_finetuned

    return mae_finetuned("large", mae_weights("mae_vit_large"))


@model_fixture(suite=IMAGENET)
def mae_vit_huge(mae_weights):
    """ViT-H/14, pretrained as a masked autoencoder and fine-tuned by its authors."""
    from mae_bench.models.checkpoints import mae_finetuned

    return mae_finetuned("huge", mae_weights("mae_vit_huge"))


@model_fixture(suite=IMAGENET, head=False, arm="mae_pretrained", training_seed=0)
def mae_vit_base_pretrained(mae_weights):
    """The encoder that mae_vit_base starts from, for what happens inside it."""
    from mae_bench.models.checkpoints import mae_pretrained

    return mae_pretrained("base", mae_weights("mae_vit_base_pretrained"))


@model_fixture(suite="imagenet", arm="mae_probe", training_seed=0)
def mae_vit_base_probe50(mae_weights, mae_probe):
    """The same encoder, frozen, with a linear classifier fitted to 50 training images of each class."""
    from mae_bench.models.checkpoints import mae_pretrained

    encoder = mae_pretrained("base", mae_weights("mae_vit_base_pretrained"))
    return mae_probe(encoder, name="mae_vit_base_probe50", per_class=50)


@model_fixture(suite=IMAGENET, arm="supervised", training_seed=0)
def vit_base_augreg_in1k(mae_weights):
    """ViT-B/16, trained supervised on ImageNet-1k with much augmentation and regularisation."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("vit_base_patch16_224.augreg_in1k", *mae_weights("vit_base_augreg_in1k"))


@model_fixture(suite=IMAGENET)
def deit_base(mae_weights):
    """DeiT-B/16, trained supervised on ImageNet-1k without distillation."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("deit_base_patch16_224.fb_in1k", *mae_weights("deit_base"))


@model_fixture(suite=IMAGENET)
def deit_small(mae_weights):
    """DeiT-S/16, trained supervised on ImageNet-1k without distillation."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("deit_small_patch16_224.fb_in1k", *mae_weights("deit_small"))


@model_fixture(suite=IMAGENET)
def deit3_base(mae_weights):
    """DeiT III B/16, trained supervised on ImageNet-1k."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("deit3_base_patch16_224.fb_in1k", *mae_weights("deit3_base"))


@model_fixture(suite=IMAGENET)
def beit_base(mae_weights):
    """BEiT-B/16, pretrained by masked image modelling on ImageNet-22k, fine-tuned there and on ImageNet-1k."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("beit_base_patch16_224.in22k_ft_in22k_in1k", *mae_weights("beit_base"))


@model_fixture(suite=IMAGENET)
def hiera_base(mae_weights):
    """Hiera-B, a hierarchical ViT pretrained as a masked autoencoder and fine-tuned."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("hiera_base_224.mae_in1k_ft_in1k", *mae_weights("hiera_base"))


@model_fixture(suite=IMAGENET)
def convnextv2_base(mae_weights):
    """ConvNeXt V2 B, a CNN pretrained as a masked autoencoder and fine-tuned."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("convnextv2_base.fcmae_ft_in1k", *mae_weights("convnextv2_base"))


@model_fixture(suite="imagenet")
def vit_base_dino_probe50(mae_probe):
    """DINO's ViT-B/16, frozen, with a linear classifier fitted to 50 training images of each class."""
    from mae_bench.models.checkpoints import pretrained_encoder

    return mae_probe(pretrained_encoder("vit_base_patch16_224.dino"), name="vit_base_dino_probe50", per_class=50)


@model_fixture(suite=IMAGENET)
def resnet50(mae_weights):
    """ResNet-50 with torchvision's first weights, the ones most papers compare with."""
    from mae_bench.models.checkpoints import pretrained

    return pretrained("resnet50.tv_in1k", *mae_weights("resnet50"))
