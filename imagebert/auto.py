"""Makes ImageBERT known to transformers' AutoConfig, AutoModel, AutoModelForPreTraining and AutoProcessor.

Whatever is taken from `imagebert` itself does so too; who takes nothing writes `import imagebert.auto`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from imagebert.model import ImageBertConfig, ImageBertForPreTraining, ImageBertModel
from imagebert.processing import ImageBertProcessor

AutoConfig.register(ImageBertConfig.model_type, ImageBertConfig)
AutoModel.register(ImageBertConfig, ImageBertModel)
AutoModelForPreTraining.register(ImageBertConfig, ImageBertForPreTraining)
AutoProcessor.register(ImageBertConfig, ImageBertProcessor)
