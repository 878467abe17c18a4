"""`index.html` of what `vit inspect` drew: each picture with what it says, in a sentence."""

import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

from vit_jax import text
from vit_jax.views import html

NAMES = {
  'filters': 'Filters',
  'positions': 'Positions',
  'distances': 'Attention distance',
  'layers': 'Layers compared',
  'pca': 'Patches as colours',
  'reconstruction': 'Hidden patches filled in',
  'attention': 'Attention of every head',
  'rollout': 'Attention rollout',
  'evidence': 'Evidence',
  'occlusion': 'Occlusion',
}
SENTENCES = {  # how to read each picture
  'filters': 'The patterns of pixels that the model looks for first, the most common first; a '
  'trained model has smooth ones, as edges and colours, an untrained one noise.',
  'positions': 'Each tile is one patch, and shows how alike the positions of all others are to its '
  'own; a model that has learned the plane has a bright spot at the patch, with its row and '
  'column.',
  'distances': 'How far each head looks from a patch, layer by layer; a low dot is a head that '
  'looks at neighbours, a high one sees the whole image.',
  'layers': 'How alike what two layers say of the same patches is; bright blocks are layers that '
  'change little.',
  'pca': 'Patches of like colour are alike to the model, in all of the images; where it has '
  'learned objects, an object and its parts have colours of their own.',
  'reconstruction': 'What a masked autoencoder makes of patches that it does not see; one that '
  'has learned carries on lines and surfaces, and is blurred where the image could be otherwise.',
  'attention': 'Bright patches are those that the classifier reads through that head; a row for '
  'each layer, a column for each head.',
  'rollout': 'Attention followed from the last layer to the patches, through all layers up to '
  'each.',
  'evidence': 'How much each patch speaks for the class, by itself, at the end of the model.',
  'occlusion': 'How much the score of the class falls as a grey square hides each place: bright is '
  'what it rests on.',
}


def index(described: Mapping[str, Any]) -> str:
  """The page, of what `inspect.json` holds; its pictures are the files beside it."""
  images = described['images']
  links = ''.join(
    f'<li><a href="#image-{number}">{html.escape(heading(image))}</a></li>'
    for number, image in enumerate(images)
  )
  return html.render(
    'look.html',
    title=html.escape(pathlib.Path(described['model']).name),
    style=html.asset('style.css'),
    attention=attention_link(described['pictures']),
    images=f'<nav aria-label="Images"><ul>{links}</ul></nav>' * (len(images) > 1),
    overview=overview_section(described['pictures']),
    sections=''.join(image_section(image, number) for number, image in enumerate(images)),
    absent=absent_lines(described['left_out']),
  )


def attention_link(pictures: Mapping[str, str]) -> str:
  """The way to attention.html, where it was drawn."""
  if 'page' not in pictures:
    return ''
  caption = html.escape(pictures['page'])
  return (
    '<p class="way"><a href="attention.html">Explore the attention</a> of every patch, head and '
    f'layer by hand <span class="faint">({caption})</span></p>'
  )


def heading(image: Mapping[str, Any]) -> str:
  """An image's name without folders, and its class where that is known."""
  name = pathlib.Path(image['file']).name
  return f'{name}, {image["label"]}' if image['label'] else name


def image_section(image: Mapping[str, Any], number: int) -> str:
  """What one image shows, with its predictions and how faithful each explanation is."""
  predictions = ', '.join(f'{each["label"]} ({each["score"]:.1%})' for each in image['predictions'])
  says = f'<p>The model says {html.escape(predictions)}.</p>' * bool(predictions)
  faithfulness = image.get('faithfulness', {})
  if faithfulness:
    label = html.escape(faithfulness['label'])
    says += (
      f'<p class="faint">Faithfulness is of {label}: patches are hidden in grey in '
      f'{text.quantity(faithfulness["steps"], "step")}, and the order of each explanation is '
      f'compared with random orders ({faithfulness["passes"]} forward passes).</p>'
    )
  folder = urllib.parse.quote(image['folder']) + '/'
  kinds = [kind for kind in image['pictures'] if kind in NAMES]
  sentences = faithfulness.get('sentences', {})
  body = ''.join(
    figure(folder, kind, image['pictures'][kind], sentences.get(kind, '')) for kind in kinds
  )
  title = html.escape(heading(image))
  figures = f'<div class="figures">{body}</div>'
  return f'<section id="image-{number}"><h2>{title}</h2>{says}{figures}</section>'


def overview_section(pictures: Mapping[str, str]) -> str:
  """What the weights alone, and all images together, show."""
  body = ''.join(figure('', kind, line, '') for kind, line in pictures.items() if kind in NAMES)
  if not body:
    return ''
  return f'<section><h2>The model</h2><div class="figures">{body}</div></section>'


def figure(folder: str, kind: str, line: str, faithfulness: str) -> str:
  """A picture that opens itself, what it says, and how faithful it is where that was measured."""
  address, caption = f'{folder}{kind}.png', html.escape(line[:1].upper() + line[1:])
  judged = f'<p class="judged">{html.escape(faithfulness)}</p>' * bool(faithfulness)
  return (
    f'<figure class="{kind}"><h3>{NAMES[kind]}</h3><p>{SENTENCES[kind]}</p>'
    f'<a href="{address}"><img src="{address}" alt="{caption}" loading="lazy"></a>'
    f'<figcaption>{caption}. <a href="{folder}{kind}.npz">Its arrays</a></figcaption>'
    f'{judged}</figure>'
  )


def absent_lines(absent: Mapping[str, str]) -> str:
  """What was not drawn, and why."""
  if not absent:
    return ''
  lines = ''.join(
    f'<li>{html.escape(NAMES.get(kind, "attention.html"))}: {html.escape(reason)}</li>'
    for kind, reason in absent.items()
  )
  return f'<section><h2>Not drawn</h2><ul>{lines}</ul></section>'
