"""What pages are made of that need nothing but a browser: tables, pictures, templates."""

import base64
import html
import importlib.resources
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from PIL.Image import Image

RAMP = np.array([(0, 0, 10), (80, 18, 110), (185, 52, 84), (248, 140, 16), (252, 253, 170)])


def escape(value: object) -> str:
  """Anything as text that HTML takes as text."""
  return html.escape(str(value))


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Cells are text; the first column names the row."""
  head = ''.join(f'<th scope="col">{escape(title)}</th>' for title in titles)
  body = ''.join(
    f'<tr><th scope="row">{escape(first)}</th>'
    + ''.join(f'<td>{escape(c)}</td>' for c in cells)
    + '</tr>'
    for first, *cells in rows
  )
  return (
    f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def picture_figure(png: bytes, caption: str) -> str:
  """A picture of `pictures` with what it shows."""
  image = f'<img src="{file_uri(png)}" alt="{escape(caption)}">'
  return f'<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>'


def data_uri(pixels: 'np.ndarray | Image', form: str = 'PNG', **options: Any) -> str:
  """A picture as a `data:` URL.

  Args:
    pixels: (H, W, 3) or, with opacity, (H, W, 4) uint8; or an image of Pillow.
    form: of the file that it holds, as Pillow names it.
    options: further arguments of Pillow's `save`.
  """
  from PIL import Image as images

  stream = io.BytesIO()
  image = images.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
  image.save(stream, form, **options)
  return file_uri(stream.getvalue(), form)


def file_uri(content: bytes, form: str = 'PNG') -> str:
  """A picture's file as a `data:` URL."""
  return f'data:image/{form.lower()};base64,{base64.b64encode(content).decode()}'


def heatmap(weights: np.ndarray, *, strength: float = 0.7) -> str:
  """(rows, columns) weights as the address of a picture to lay over the image."""
  alpha = np.full((*weights.shape, 1), 255 * strength)
  mixed = colours(weights / max(weights.max(), 1e-30))
  return data_uri(np.rint(np.concatenate([mixed, alpha], axis=-1)).astype(np.uint8))


def colours(fractions: np.ndarray) -> np.ndarray:
  """(...) fractions in [0, 1] -> (..., 3) of `RAMP`, [0, 255]."""
  stops = np.linspace(0, 1, len(RAMP))
  return np.stack([np.interp(fractions, stops, channel) for channel in RAMP.T], axis=-1)


def asset(name: str) -> str:
  """The text of a file of `vit_jax/views`."""
  return importlib.resources.files('vit_jax').joinpath('views', name).read_text('utf-8')


def render(name: str, **parts: str) -> str:
  """A page of `vit_jax/views` with every {{part}} in its place."""
  return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], asset(name))


def script_json(value: object) -> str:
  """JSON that no text in it can break out of a script element with."""
  return json.dumps(value, allow_nan=False).replace('<', '\\u003c')


def page(
  title: str,
  sections: Mapping[str, str],
  *,
  lead: str = '',
  style: str = '',
  refresh: str = '',
  is_small: bool = False,
) -> str:
  """A page of a run, or of several: one file that asks for no other.

  Args:
    title: as text.
    sections: their HTML by their titles, which the page's navigation has.
    lead: HTML of what comes before them.
    style: rules beside those of all pages.
    refresh: what has it read itself again, for its head.
    is_small: whether photos are so small that their pixels are to be seen.
  """
  ids = {name: name.lower().replace(' ', '-') for name in sections}
  return render(
    'report.html',
    title=escape(title),
    refresh=refresh,
    lead=lead,
    style=asset('style.css') + style,
    script=asset('report.js'),
    look=' class="small"' * is_small,
    nav=''.join(f'<a href="#{ids[name]}">{name}</a>' for name in sections),
    body='\n'.join(
      f'<section aria-labelledby="{ids[name]}"><h2 id="{ids[name]}">{name}</h2>{body}</section>'
      for name, body in sections.items()
    ),
  )
