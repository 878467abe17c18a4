"""Every family that we convert: a seeded random model of the peer, saved as the peer saves it.

N images, C channels, T tokens, D width, K classes. Peers take images (N, C, height, width).
"""

import dataclasses
import functools
import json
import pathlib
import re
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

# torchvision's Python, without the C++ that would have to match torch's build.
_LIBRARY = torch.library.Library('torchvision', 'DEF')
_LIBRARY.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
_LIBRARY.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import lightly.loss
  import lightly.models.modules.heads
  import timm
  import timm.models
  import torchvision
  import transformers

LIGHTLY_LOSSES, LIGHTLY_HEADS = lightly.loss, lightly.models.modules.heads

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Larger than 1 / K as in every field: a head that is transposed or misplaced does not fit.
TINY = dict(img_size=64, embed_dim=64, depth=3, num_heads=4, num_classes=7)


@dataclasses.dataclass
class Peer:
  """A model of another library, on disk and in memory.

  Fields:
    path: what `vit_jax.load` is given.
    module: the peer's model.
    blocks: its layers, each reading and giving (N, T, D).
    call: (module, images) -> {'logits': ...}, and whatever else `out` should equal, by its name.
    to: the dialect to convert back to.
    reopen: our file in that dialect -> the peer's model; raises if names are missing or unknown.
    source: the arrays that conversion there and back gives again.
    unread: their arrays that no forward pass of this model reads, and so we do not keep.
    size: (height, width) of the images.
  """

  path: pathlib.Path
  module: torch.nn.Module
  blocks: list[torch.nn.Module]
  call: Callable[[torch.nn.Module, torch.Tensor], dict[str, torch.Tensor]]
  to: str
  reopen: Callable[[pathlib.Path], torch.nn.Module]
  source: dict[str, np.ndarray]
  unread: str = r'(?!)'
  size: tuple[int, int] = (64, 64)

  @property
  def read_by_us(self) -> dict[str, np.ndarray]:
    return {name: a for name, a in self.source.items() if not re.fullmatch(self.unread, name)}

  def trace(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """'embedded', 'blocks', 'logits' and what else `call` gives, for images (N, h, w, C)."""
    outputs: dict[str, Any] = {'blocks': []}

    def before(_, args, kwargs):
      outputs['embedded'] = args[0] if args else kwargs['hidden_states']

    def after(_, args, kwargs, output):
      outputs['blocks'].append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(after, with_kwargs=True) for block in self.blocks]
    if self.blocks:
      hooks.append(self.blocks[0].register_forward_pre_hook(before, with_kwargs=True))
    try:
      outputs |= run(self.call, self.module, images)
    finally:
      for hook in hooks:
        hook.remove()
    blocks = outputs.pop('blocks')
    if blocks:
      outputs['blocks'] = torch.stack(blocks)
    return {name: np.asarray(value) for name, value in outputs.items()}


def run(call, module, images: np.ndarray) -> dict[str, torch.Tensor]:
  """What `call` gives for images (N, height, width, C)."""
  with torch.inference_mode():
    return call(module.eval(), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))


def seeded(module: torch.nn.Module) -> torch.nn.Module:
  """The module with every parameter drawn by its name, at the scale of a trained one.

  None is left at an initial zero or one, where it would hide that it was lost; activations stay
  near 1 and logits too, as the tolerance on them is absolute.
  """
  norms = ('LayerNorm', 'GroupNorm', 'RmsNorm')
  dense = ('Linear', 'Conv')
  with torch.no_grad():
    for prefix, child in module.named_modules():
      kinds = {kind.__name__ for kind in type(child).__mro__}
      is_norm = any(kind.startswith(norms) for kind in kinds)
      is_dense = any(kind.startswith(dense) for kind in kinds)
      for leaf, parameter in child.named_parameters(recurse=False):
        rng = np.random.default_rng(zlib.crc32(f'{prefix}.{leaf}'.encode()))
        values = rng.standard_normal(parameter.shape)
        fused = leaf == 'in_proj_weight'  # of torch's MultiheadAttention
        if leaf == 'weight' and is_norm:
          values = 1 + 0.2 * values
        elif leaf.startswith(('gamma', 'lambda')):
          values = 0.6 + 0.2 * values
        elif fused or (leaf == 'weight' and is_dense):
          values /= np.sqrt(np.prod(parameter.shape[1:]))
        elif values.ndim == 1 and leaf != 'class_embedding':
          values *= 0.2
        else:
          values *= 0.5  # tokens, positions, probes
        parameter.copy_(torch.from_numpy(values))
  return module.eval()


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Of a safetensors file, or of the one in a folder."""
  file = path if path.is_file() else path / 'model.safetensors'
  return safetensors.numpy.load_file(file)


def numpy(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
  return {name: value.detach().numpy().copy() for name, value in state.items()}


def logits_of(module, images):
  return {'logits': module(images)}


# timm


def timm_peer(folder: pathlib.Path, *, arch: str, **fields: Any) -> Peer:
  """A model of timm in a folder like those of its Hub."""
  module = seeded(timm.create_model(arch, **fields))
  save_timm(module, folder)
  side = fields.get('img_size', 64)
  call = deit_heads if hasattr(module, 'head_dist') else logits_of
  return Peer(
    path=folder,
    module=module,
    blocks=list(getattr(module, 'blocks', [])),
    call=call,
    to='timm',
    reopen=open_timm,
    source=arrays(folder),
    size=(side, side) if isinstance(side, int) else tuple(side),
  )


def save_timm(module: torch.nn.Module, folder: pathlib.Path) -> None:
  timm.models.save_for_hf(module, str(folder), safe_serialization=True)


def open_timm(folder: pathlib.Path) -> torch.nn.Module:
  """Through the folder's own config.json, and strictly: timm's loader is."""
  return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def deit_heads(module, images):
  tokens = module.forward_features(images)
  return {
    'logits': module.forward_head(tokens),
    'head': module.head(tokens[:, 0]),
    'head_dist': module.head_dist(tokens[:, 1]),
  }


def timm_family(arch: str, **fields: Any) -> Callable[[pathlib.Path], Peer]:
  return functools.partial(timm_peer, arch=arch, **(TINY | fields))


CLIP_TINY = dict(embed_dim=128, num_heads=2)  # as every CLIP, heads of 64

TIMM = {
  'beit': timm_family('beit_base_patch16_224'),
  'beit no scale token': timm_family(
    'beitv2_base_patch16_224',
    init_values=None,
    use_abs_pos_emb=True,
    global_pool='token',
    img_size=(64, 96),
  ),
  'relpos': timm_family('vit_relpos_base_patch16_224', qkv_bias=False, rel_pos_dim=48),
  'relpos norms after': timm_family('vit_relpos_base_patch16_rpn_224'),
  'relpos bias cls': timm_family(
    'vit_relpos_base_patch16_224', rel_pos_type='bias', class_token=True, fc_norm=True, qk_norm=True
  ),
  'vit token': timm_family('vit_tiny_patch16_224'),
  'vit no head': timm_family('vit_tiny_patch16_224', num_classes=0),
  'vit non-square': timm_family('vit_tiny_patch16_224', img_size=(64, 96)),
  'vit gap fc_norm': timm_family('vit_tiny_patch16_224', global_pool='avg'),
  'vit gap no cls': timm_family(
    'vit_tiny_patch16_224', global_pool='avg', class_token=False, no_embed_class=True
  ),
  'vit registers': timm_family('vit_tiny_patch16_224', reg_tokens=4, no_embed_class=True),
  'vit registers gap': timm_family('vit_medium_patch16_reg4_gap_256'),
  'vit no_embed_class': timm_family('vit_tiny_patch16_224', no_embed_class=True),
  'vit qk_norm': timm_family('vit_tiny_patch16_224', qk_norm=True),
  'vit no qkv bias': timm_family('vit_tiny_patch16_224', qkv_bias=False),
  'vit layer scale': timm_family('vit_tiny_patch16_224', init_values=1e-5),
  'siglip map': timm_family('vit_base_patch16_siglip_224'),
  'siglip map tanh': timm_family('vit_base_patch32_siglip_256'),
  'siglip map tanh no head': timm_family('vit_base_patch32_siglip_256', num_classes=0),
  'siglip gap': timm_family('vit_base_patch16_siglip_gap_224'),
  'clip quickgelu': timm_family('vit_base_patch32_clip_quickgelu_224', **CLIP_TINY),
  'clip no head': timm_family('vit_base_patch32_clip_quickgelu_224', num_classes=0, **CLIP_TINY),
  'clip erf': timm_family('vit_base_patch16_clip_224', **CLIP_TINY),
  'deit': timm_family('deit_tiny_patch16_224'),
  'deit distilled': timm_family('deit_tiny_distilled_patch16_224'),
  'deit3': timm_family('deit3_small_patch16_224'),
  'dinov2': timm_family('vit_small_patch14_dinov2', img_size=56, num_classes=0),
  'dinov2 classes': timm_family('vit_small_patch14_dinov2', img_size=56),
  'dinov2 registers': timm_family('vit_small_patch14_reg4_dinov2', img_size=56, num_classes=0),
  # width 96 x 2.66667 x 2 = 512: timm halves it, and wants it even
  'dinov2 swiglu': timm_family('vit_giant_patch14_dinov2', img_size=56, embed_dim=96, num_heads=4),
  'dinov2 swiglu registers': timm_family(
    'vit_giant_patch14_reg4_dinov2', img_size=56, embed_dim=96, num_heads=4, num_classes=0
  ),
  'dinov3': timm_family('vit_small_patch16_dinov3', num_classes=0),
  'dinov3 token': timm_family('vit_small_patch16_dinov3', global_pool='token'),
  'dinov3 qkv bias': timm_family('vit_small_patch16_dinov3_qkvb', global_pool='token'),
  'dinov3 token no head': timm_family(
    'vit_small_patch16_dinov3_qkvb', global_pool='token', num_classes=0
  ),
  'dinov3 gated': timm_family('vit_small_plus_patch16_dinov3', global_pool='token'),
  'dinov3 gated qkv bias': timm_family('vit_small_plus_patch16_dinov3_qkvb', global_pool='token'),
  'mixer': functools.partial(timm_peer, arch='mixer_s32_224', img_size=64, num_classes=7),
  'hybrid stem': timm_family('vit_tiny_r_s16_p8_224', depth=2),
  'hybrid r26': timm_family('vit_small_r26_s32_224', depth=2),
  'hybrid r50': timm_family('vit_base_r50_s16_224', depth=2),
  'bit': functools.partial(timm_peer, arch='resnetv2_50x1_bit', num_classes=7),
}

# Hugging Face

HF_TINY = dict(
  hidden_size=64,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=160,
  image_size=64,
  patch_size=16,
)
DINO_TINY = dict(
  hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)
LABELS = {i: f'thing {i}' for i in range(7)}


def hf_peer(
  folder: pathlib.Path,
  *,
  model: str,
  config: str,
  blocks: str,
  read: Callable[[Any], dict[str, torch.Tensor]],
  unread: str = r'(?!)',
  nested: bool = False,
  **fields: Any,
) -> Peer:
  """A model of transformers as `save_pretrained` writes it, `nested`: of a vision_config."""
  made = getattr(transformers, config)
  labels = {'id2label': LABELS, 'label2id': {name: i for i, name in LABELS.items()}}
  described = made(vision_config=fields, **labels) if nested else made(**fields, **labels)
  kind = getattr(transformers, model)
  module = seeded(kind(described))
  module.save_pretrained(folder)
  side = fields['image_size']
  return Peer(
    path=folder,
    module=module,
    blocks=list(module.get_submodule(blocks)),
    call=lambda module, images: read(module(images)),
    to='hf',
    reopen=functools.partial(open_hf, kind),
    source=arrays(folder),
    unread=unread,
    size=(side, side) if isinstance(side, int) else tuple(side),
  )


def open_hf(kind: type, folder: pathlib.Path) -> torch.nn.Module:
  module, info = kind.from_pretrained(folder, output_loading_info=True)
  wrong = {name: names for name, names in info.items() if names}
  if kind is transformers.ViTModel:  # takes its pooler from nowhere, where a model has none
    wrong['missing_keys'] = [n for n in wrong.get('missing_keys', ()) if 'pooler' not in n]
    wrong = {name: names for name, names in wrong.items() if names}
  if wrong:
    raise ValueError(f'{kind.__name__}.from_pretrained: {wrong}')
  named = json.loads((folder / 'config.json').read_text())['architectures']
  if named != [kind.__name__]:
    raise ValueError(f'config.json names {named}, not {kind.__name__}')
  return module.eval()


def in_memory(peer: Peer, folder: pathlib.Path) -> pathlib.Path:
  """A folder with the names that transformers 5 has in memory, not those that it writes."""
  folder.mkdir()
  (folder / 'config.json').write_bytes((peer.path / 'config.json').read_bytes())
  state = {name: value.contiguous() for name, value in peer.module.state_dict().items()}
  safetensors.torch.save_file(state, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


def logits(output):
  return {'logits': output.logits}


def pooled(output):
  return {'logits': output.pooler_output}


def embeds(output):
  return {'logits': output.image_embeds}


def whichever(module, images):
  """The logits, or else the projection, or else the pooled features, of any model."""
  output = module(images)
  kinds = ('logits', 'image_embeds', 'pooler_output')
  return {'logits': next(output[kind] for kind in kinds if kind in output)}


def open_named(folder: pathlib.Path) -> torch.nn.Module:
  """The class of transformers that a folder's configuration names."""
  named = json.loads((folder / 'config.json').read_text())['architectures'][0]
  return open_hf(getattr(transformers, named), folder)


def two_heads(output):
  return {
    'logits': output.logits,
    'head': output.cls_logits,
    'head_dist': output.distillation_logits,
  }


def hf_family(model: str, config: str, blocks: str, read: Any, **fields: Any) -> Any:
  return functools.partial(hf_peer, model=model, config=config, blocks=blocks, read=read, **fields)


MASK = r'.*mask_token'
BEIT_TINY = HF_TINY | {'use_relative_position_bias': True}

HF = {
  'hf beit classes': hf_family(
    'BeitForImageClassification', 'BeitConfig', 'beit.layers', logits, **BEIT_TINY
  ),
  'hf beit': hf_family(
    'BeitModel',
    'BeitConfig',
    'layers',
    pooled,
    use_mean_pooling=False,
    use_absolute_position_embeddings=True,
    layer_norm_eps=1e-6,
    **BEIT_TINY,
  ),
  'hf vit': hf_family('ViTForImageClassification', 'ViTConfig', 'vit.layers', logits, **HF_TINY),
  'hf vit eps 1e-6 tanh no qkv bias': hf_family(
    'ViTForImageClassification',
    'ViTConfig',
    'vit.layers',
    logits,
    layer_norm_eps=1e-6,
    hidden_act='gelu_pytorch_tanh',
    qkv_bias=False,
    **HF_TINY,
  ),
  'hf vit eps 1e-6': hf_family(
    'ViTForImageClassification', 'ViTConfig', 'vit.layers', logits, layer_norm_eps=1e-6, **HF_TINY
  ),
  'hf vit pooler': hf_family('ViTModel', 'ViTConfig', 'layers', pooled, **HF_TINY),
  'hf deit': hf_family(
    'DeiTForImageClassification', 'DeiTConfig', 'deit.layers', logits, **HF_TINY
  ),
  'hf deit distilled': hf_family(
    'DeiTForImageClassificationWithTeacher', 'DeiTConfig', 'deit.layers', two_heads, **HF_TINY
  ),
  'hf deit distilled eps 1e-6': hf_family(
    'DeiTForImageClassificationWithTeacher',
    'DeiTConfig',
    'deit.layers',
    two_heads,
    layer_norm_eps=1e-6,
    **HF_TINY,
  ),
  'hf dinov2': hf_family(
    'Dinov2Model', 'Dinov2Config', 'encoder.layer', pooled, unread=MASK, **DINO_TINY
  ),
  'hf dinov2 classes': hf_family(
    'Dinov2ForImageClassification',
    'Dinov2Config',
    'dinov2.encoder.layer',
    logits,
    unread=MASK,
    **DINO_TINY,
  ),
  'hf dinov2 swiglu': hf_family(
    'Dinov2Model',
    'Dinov2Config',
    'encoder.layer',
    pooled,
    unread=MASK,
    use_swiglu_ffn=True,
    **DINO_TINY,
  ),
  'hf dinov2 registers': hf_family(
    'Dinov2WithRegistersModel',
    'Dinov2WithRegistersConfig',
    'encoder.layer',
    pooled,
    unread=MASK,
    num_register_tokens=4,
    **DINO_TINY,
  ),
  'hf dinov2 registers classes': hf_family(
    'Dinov2WithRegistersForImageClassification',
    'Dinov2WithRegistersConfig',
    'dinov2_with_registers.encoder.layer',
    logits,
    unread=MASK,
    num_register_tokens=4,
    **DINO_TINY,
  ),
  'hf dinov2 registers swiglu': hf_family(
    'Dinov2WithRegistersModel',
    'Dinov2WithRegistersConfig',
    'encoder.layer',
    pooled,
    unread=MASK,
    num_register_tokens=4,
    use_swiglu_ffn=True,
    **DINO_TINY,
  ),
  'hf dinov3 without biases': hf_family(
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    'model.layer',
    pooled,
    unread=MASK,
    num_register_tokens=4,
    proj_bias=False,
    mlp_bias=False,
    **HF_TINY,
  ),
  'hf dinov3': hf_family(
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    'model.layer',
    pooled,
    unread=MASK,
    num_register_tokens=4,
    **HF_TINY,
  ),
  'hf dinov3 gated': hf_family(
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    'model.layer',
    pooled,
    unread=MASK,
    num_register_tokens=4,
    use_gated_mlp=True,
    hidden_act='silu',
    **HF_TINY,
  ),
  'hf dinov3 no qkv bias': hf_family(
    'DINOv3ViTModel',
    'DINOv3ViTConfig',
    'model.layer',
    pooled,
    unread=MASK,
    query_bias=False,
    value_bias=False,
    **HF_TINY,
  ),
  'hf clip': hf_family('CLIPVisionModel', 'CLIPVisionConfig', 'encoder.layers', pooled, **HF_TINY),
  'hf clip projection': hf_family(
    'CLIPVisionModelWithProjection',
    'CLIPVisionConfig',
    'vision_model.encoder.layers',
    embeds,
    projection_dim=48,
    **HF_TINY,
  ),
  'hf clip classes': hf_family(
    'CLIPForImageClassification',
    'CLIPConfig',
    'vision_model.encoder.layers',
    logits,
    nested=True,
    unread=r'.*post_layernorm.*',  # the mean of the patches is taken before that norm
    **HF_TINY,
  ),
  'hf siglip': hf_family(
    'SiglipVisionModel', 'SiglipVisionConfig', 'encoder.layers', pooled, **HF_TINY
  ),
  'hf siglip classes': hf_family(
    'SiglipForImageClassification',
    'SiglipConfig',
    'vision_model.encoder.layers',
    logits,
    nested=True,
    unread=r'vision_model\.head\..*',  # attention pooling, there but not called
    **HF_TINY,
  ),
}

# torchvision


def torchvision_peer(folder: pathlib.Path, *, representation: int | None = None) -> Peer:
  make = functools.partial(
    torchvision.models.VisionTransformer,
    image_size=64,
    patch_size=16,
    num_layers=3,
    num_heads=2,
    hidden_dim=128,  # its models, too, have heads of 64
    mlp_dim=160,
    num_classes=7,
    representation_size=representation,
  )
  module = seeded(make())
  path = folder / 'model.safetensors'
  safetensors.torch.save_file(module.state_dict(), path)

  def reopen(path: pathlib.Path) -> torch.nn.Module:
    again = make()
    file = path if path.is_file() else path / 'model.safetensors'
    again.load_state_dict(safetensors.torch.load_file(file))
    return again.eval()

  return Peer(
    path=path,
    module=module,
    blocks=list(module.encoder.layers),
    call=logits_of,
    to='torchvision',
    reopen=reopen,
    source=arrays(path),
  )


def before_0_13(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """torchvision's older names of the MLP."""
  spelled = ((r'\.mlp\.0\.', '.mlp.linear_1.'), (r'\.mlp\.3\.', '.mlp.linear_2.'))
  return renamed(state, spelled)


TORCHVISION = {
  'torchvision': torchvision_peer,
  'torchvision representation': functools.partial(torchvision_peer, representation=48),
}

FAMILIES = TIMM | HF | TORCHVISION

# The authors' own names, from timm's: (regular expression, replacement) in order.


def renamed(state: dict[str, np.ndarray], names: Any) -> dict[str, np.ndarray]:
  """The arrays under other names."""
  out = {}
  for name, array in state.items():
    for old, new in names:
      name = re.sub(old, new, name)
    out[name] = array
  return out


def facebook_dinov2(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  names = ((r'mlp\.fc1', 'mlp.w12'), (r'mlp\.fc2', 'mlp.w3'))
  width = state['cls_token'].shape[-1]
  packed = len(state['blocks.0.mlp.fc1.weight']) == 2 * state['blocks.0.mlp.fc2.weight'].shape[1]
  theirs = renamed(state, names if packed else ())
  theirs['mask_token'] = np.ones((1, width), np.float32)
  if 'reg_token' in theirs:
    # timm folds the class token's position into the token; any split of the sum will do.
    theirs['register_tokens'] = theirs.pop('reg_token')
    position = np.full((1, 1, width), 0.25, np.float32)
    theirs['pos_embed'] = np.concatenate([position, theirs['pos_embed']], axis=1)
    theirs['cls_token'] = theirs['cls_token'] - position
  return theirs


def facebook_deit3(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return renamed(state, ((r'ls(\d)\.gamma', r'gamma_\1'),))


def facebook_dinov3(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """With the q and v biases in one array, and the mask over k's."""
  names = ((r'gamma_(\d)', r'ls\1.gamma'), ('reg_token', 'storage_tokens'))
  names += ((r'mlp\.fc1_g', 'mlp.w1'), (r'mlp\.fc1_x', 'mlp.w2'))
  if any('fc1_g' in name for name in state):
    names += ((r'mlp\.fc2', 'mlp.w3'),)
  theirs = renamed(state, names)
  theirs['mask_token'] = np.ones((1, state['cls_token'].shape[-1]), np.float32)
  theirs['rope_embed.periods'] = np.ones(4, np.float32)
  for name in [name for name in theirs if name.endswith('q_bias')]:
    query, value = theirs.pop(name), theirs.pop(name.replace('q_bias', 'v_bias'))
    key = np.zeros_like(query)  # Meta's file has NaN or noise here, and a mask of zeros
    theirs[name.replace('q_bias', 'qkv.bias')] = np.concatenate([query, key, value])
    mask = np.concatenate([np.ones_like(query), key, np.ones_like(query)])
    theirs[name.replace('q_bias', 'qkv.bias_mask')] = mask
  return theirs


def openai_clip(state: dict[str, np.ndarray], prefix: str = 'visual.') -> dict[str, np.ndarray]:
  """From timm's, whose head has no bias here: OpenAI's projection has none."""
  names = (
    (r'^patch_embed\.proj\.', 'conv1.'),
    (r'^pos_embed$', 'positional_embedding'),
    (r'^cls_token$', 'class_embedding'),
    (r'^norm_pre\.', 'ln_pre.'),
    (r'^norm\.', 'ln_post.'),
    (r'^blocks\.', 'transformer.resblocks.'),
    (r'\.norm([12])\.', r'.ln_\1.'),
    (r'\.attn\.qkv\.', '.attn.in_proj_'),
    (r'\.attn\.proj\.', '.attn.out_proj.'),
    (r'\.mlp\.fc1\.', '.mlp.c_fc.'),
    (r'\.mlp\.fc2\.', '.mlp.c_proj.'),
    (r'^head\.weight$', 'proj'),
  )
  theirs = renamed(state, names)
  theirs['class_embedding'] = theirs['class_embedding'][0, 0]
  theirs['positional_embedding'] = theirs['positional_embedding'][0]
  theirs['proj'] = np.ascontiguousarray(theirs['proj'].T)
  theirs.pop('head.bias')
  text = {'logit_scale': np.float32([4.6]), 'token_embedding.weight': np.ones((9, 4), np.float32)}
  return {f'{prefix}{name}': array for name, array in theirs.items()} | text


def open_clip_trunk(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """open_clip's wrapping of a timm model, and a text tower beside it."""
  theirs = {f'visual.trunk.{name}': array for name, array in state.items()}
  return theirs | {'logit_scale': np.float32([4.6]), 'logit_bias': np.float32([-10])}


def linear_patches(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The patch kernel as a matrix, as in timm's oldest files."""
  kernel = state['patch_embed.proj.weight']
  return state | {'patch_embed.proj.weight': kernel.reshape(len(kernel), -1)}


def wrapped(prefix: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {f'{prefix}{name}': array for name, array in state.items()}
