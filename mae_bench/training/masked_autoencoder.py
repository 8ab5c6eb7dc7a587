"""Masked autoencoder (He et al. 2021) around a timm ViT, from lightly's modules."""

from __future__ import annotations

from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mae_bench.training.recipes import Pretraining


class MaskedAutoencoder(nn.Module):
    """Reconstruction loss of hidden patches; ``encoder`` stays the timm ViT that was passed in."""

    def __init__(self, encoder: VisionTransformer, recipe: Pretraining) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = recipe
        self.patch_size: int = encoder.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=encoder)
        self.embed = nn.Linear(encoder.embed_dim, recipe.decoder_width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=encoder.patch_embed.num_patches,
            embed_dim=recipe.decoder_width,
            depth=recipe.decoder_depth,
            num_heads=recipe.decoder_heads,
        )
        channels = encoder.patch_embed.proj.in_channels
        self.predict = nn.Linear(recipe.decoder_width, self.patch_size**2 * channels)

    def forward(self, images: Tensor) -> Tensor:
        """Mean squared error on the hidden patches of ``images`` (B, C, H, W), each patch normalised."""
        size = (images.shape[0], self.backbone.sequence_length)
        kept, hidden = utils.random_token_mask(size, mask_ratio=self.recipe.mask_ratio, device=images.device)
        encoded = self.embed(self.backbone.encode(images, idx_keep=kept))
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, kept, encoded.type_as(tokens))
        predicted = self.predict(utils.get_at_index(self.decoder(tokens), hidden))
        patches = utils.get_at_index(utils.patchify(images, self.patch_size), hidden - 1)  # 0 is the class token
        mean = patches.mean(-1, keepdim=True)
        variance = patches.var(-1, keepdim=True, unbiased=False)
        target = (patches - mean) / (variance + self.recipe.variance_floor).sqrt()
        loss: Tensor = (predicted - target).square().mean()
        return loss
