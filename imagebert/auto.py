"""Makes ImageBERT known to transformers' AutoConfig, AutoModel, AutoModelForPreTraining and AutoProcessor.

Taking any class from `imagebert` does this, too. Write `import imagebert.auto` where none is taken.
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from imagebert.model import ImageBertConfig, ImageBertForPreTraining, ImageBertModel
from imagebert.processing import ImageBertProcessor

AutoConfig.register(ImageBertConfig.model_type, ImageBertConfig)
AutoModel.register(ImageBertConfig, ImageBertModel)
AutoModelForPreTraining.register(ImageBertConfig, ImageBertForPreTraining)
AutoProcessor.register(ImageBertConfig, ImageBertProcessor)
