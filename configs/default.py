"""Every field once, with what it means. A recipe starts from this and changes a few lines.

Not a recipe to run as it is: ViT-S/16 on ImageNet for 90 epochs, not yet run.

A duration is a number of steps (1000 or '1000 steps'), of epochs ('2.5 epochs') or a part of the
run ('5%'). A field that is None takes the model variant's own value.
"""

from ml_collections.config_dict import ConfigDict, placeholder


def get_config() -> ConfigDict:
  config = ConfigDict(type_safe=False)  # vit_jax.config checks types, and says what it wanted

  config.seed = 0  # of initialisation, order, augmentation and dropout
  config.duration = '90 epochs'
  config.batch_size = 1024  # images per update, over all devices
  config.accumulate = 1  # micro-batches that an update's gradient is taken in
  config.ema = 0.0  # decay per step of averaged parameters, which then are the model; 0: none
  config.image_size = (224, 224)  # (height, width) in pixels, or one number
  config.time_limit = ''  # '11h', '90m': it then saves and exits; the same command resumes

  config.task = 'classify'  # what is learned; or 'package.module:name' (docs/extending.md)
  config.pretrained = ''  # checkpoint to start from: file, run, URL or published name; '': none
  config.pretrained_dir = ''  # folder or URL where a name that is no path is looked for
  # A head as model.head_init starts it, and no tanh layer before it unless model.representation
  # asks for one; False keeps the checkpoint's, which must be for as many classes.
  config.new_head = True

  config.model = ConfigDict(type_safe=False)
  config.model.name = 'ViT-S/16'  # `vit models` lists them; '': what pretrained is
  config.model.patch = placeholder(tuple)  # (height, width) in pixels, or one number
  config.model.width = placeholder(int)
  config.model.depth = placeholder(int)  # layers
  config.model.heads = placeholder(int)
  config.model.mlp_dim = placeholder(int)
  config.model.tokens_dim = placeholder(int)  # Mixer: width of the MLP across patches
  config.model.blocks = placeholder(tuple)  # BiT: units of each stage
  config.model.width_factor = placeholder(int)  # BiT: times 64 channels in the root
  config.model.numerics = placeholder(str)  # BiT: constants of its norms, 'google', 'bit' or 'timm'
  config.model.pool = placeholder(str)  # 'token', 'gap', 'map', 'token_gap' or 'none'
  config.model.pool_prefix = placeholder(bool)  # tokens before the patches are pooled too
  config.model.pool_heads = placeholder(int)  # of 'map'; else as in the blocks
  config.model.pool_mlp_dim = placeholder(int)  # of 'map'; else as in the blocks
  config.model.class_token = placeholder(bool)  # whether there is one; else as pool needs it
  config.model.positions = placeholder(str)  # 'learned', 'sincos2d', 'rope' or 'none'
  config.model.cls_position = placeholder(bool)  # the class token has a learned position
  config.model.rope_theta = placeholder(float)  # base of the rotation's frequencies
  config.model.rope_grid = placeholder(str)  # where a patch lies: 'centres' or 'cells'
  config.model.rope_offset = placeholder(float)  # added to the number of a cell
  config.model.rope_reference = placeholder(tuple)  # rows and columns that cells are scaled to
  config.model.rope_axes = placeholder(str)  # which comes first: 'yx' or 'xy'
  config.model.rope_interleaved = placeholder(bool)  # neighbouring channels, not halves of a head
  config.model.relative_positions = placeholder(str)  # bias by distance: 'table', 'mlp' or 'none'
  config.model.relative_hidden = placeholder(int)  # width of the hidden layer of 'mlp'
  config.model.representation = placeholder(int)  # width of a tanh layer before the head
  config.model.registers = placeholder(int)  # extra tokens that no output reads
  config.model.distillation = placeholder(str)  # 'none', 'token', or 'head': one of its own
  config.model.stem = placeholder(tuple)  # hybrid: ResNet units of each stage before the patches
  config.model.stem_width = placeholder(int)  # hybrid: channels of the ResNet's root
  config.model.stem_numerics = placeholder(str)  # hybrid: as numerics
  config.model.layer_scale = placeholder(float)  # initial scale of each branch's output
  config.model.drop_path = placeholder(float)  # rate in the last layer, rising from 0 in the first
  config.model.dropout = placeholder(float)  # everywhere but after the q, k, v projections
  config.model.attention_dropout = placeholder(float)  # on the attention weights
  config.model.embed_bias = placeholder(bool)  # of the patch embedding
  config.model.qkv_bias = placeholder(str)  # which have one: 'qkv', 'qv' or 'none'
  config.model.qk_norm = placeholder(bool)  # LayerNorm of queries and keys
  config.model.proj_bias = placeholder(bool)  # of the projection after the heads, and of the MLPs
  config.model.post_norm = placeholder(bool)  # norms after attention and MLP, not before
  config.model.parallel = placeholder(bool)  # MLPs read what attention reads
  config.model.attention_norm = placeholder(bool)  # before the projection after the heads
  config.model.mlp_norm = placeholder(bool)  # before the last layer of each MLP
  config.model.swiglu = placeholder(bool)  # gated MLP
  config.model.embed_norm = placeholder(bool)  # of the patches, before positions
  config.model.pre_norm = placeholder(bool)  # before the first block
  config.model.final_norm = placeholder(str)  # LayerNorm of 'tokens', of the 'pooled', or 'none'
  config.model.activation = placeholder(str)  # 'gelu_tanh', 'gelu_erf' or 'quick_gelu'
  config.model.norm = placeholder(str)  # 'layer' or 'rms'
  config.model.norm_eps = placeholder(float)
  config.model.head_bias = placeholder(float)  # initial; -10 with the sigmoid loss
  config.model.head_init = placeholder(str)  # of its kernel: 'zeros', or 'normal' of deviation 0.02
  config.model.dtype = placeholder(str)  # None: bfloat16 on accelerators, float32 on CPU
  config.model.unroll = placeholder(int)  # layers per loop iteration; None: by remat and device
  # Recomputed in the backward pass: 'none', 'lean' (norms, softmax, activations), 'dots' (all but
  # products with parameters), 'full'; None: the first of none, lean, full whose memory fits, on a
  # CPU lean in a loop.
  config.model.remat = placeholder(str)
  config.model.attention_kernel = placeholder(str)  # 'auto' by the devices, 'xla' on all

  config.data = ConfigDict(type_safe=False)
  config.data.source = 'imagenet2012'
  config.data.columns = ''  # of a table: "image=photo,label=kind,split=fold"; '': by usual names
  config.data.train = 'train'  # splits of the source
  config.data.validation = 'validation'  # evaluated during training; '': none
  config.data.test = ''  # evaluated once, with the final model; '': none
  config.data.bad_images = 'substitute'  # another in the place of an unreadable one; or 'error'
  config.data.balance = False  # sample every class as often, in an epoch of as many images
  config.data.repeats = 1  # times that an image comes in a row, each augmented anew
  config.data.augment = 'inception_crop | flip'  # training transforms, see images/transforms.py
  config.data.preprocess = 'resize_small(scale=8/7) | central_crop'  # evaluation, prediction
  # Of a resize that names no method; None: for folders and tables, people's own photos.
  config.data.antialias = placeholder(bool)
  config.data.channels = 3  # of images: 1 grey, 3 RGB, 4 RGBA, or the bands of files and arrays
  # Of pixels in [0, 1], a number for each channel; None: the checkpoint's where it has as many,
  # else 0.5, by which the model sees [-1, 1].
  config.data.mean = placeholder(tuple)
  config.data.std = placeholder(tuple)

  # Crops of an image that tasks without labels compare, in the place of data.augment.
  config.views = ConfigDict(type_safe=False)
  config.views.global_count = 2  # crops of most of the image
  config.views.global_size = placeholder(tuple)  # (height, width), or one; None: image_size
  config.views.global_area = (0.3, 1.0)  # smallest and largest part of the image's area
  config.views.local_count = 6  # crops of a small part of it; 0: none
  config.views.local_size = (96, 96)
  config.views.local_area = (0.05, 0.3)
  config.views.augment = 'flip'  # transforms of every crop, see images/transforms.py
  config.views.global_augment = ('', '')  # then those of the first global crop, of the second, ...
  config.views.local_augment = ''  # ... and of local crops

  # Of task 'dino', whose teacher is the average: ema is its momentum at first, 1 at the end.
  config.dino = ConfigDict(type_safe=False)
  config.dino.prototypes = 65536  # outputs of the head
  config.dino.hidden = 2048  # width of its layers
  config.dino.bottleneck = 256  # width of what the prototypes read
  config.dino.constant_prototypes = '1 epoch'  # in which they are not trained
  config.dino.student_temperature = 0.1
  config.dino.first_temperature = 0.04  # of the teacher, linear to the next
  config.dino.teacher_temperature = 0.07
  config.dino.temperature_warmup = '30 epochs'
  config.dino.centring = 'mean'  # of the teacher: by a running mean; or 'sinkhorn', by the batch
  config.dino.centre_momentum = 0.9  # of that mean
  config.dino.ibot = 1.0  # weight of the loss of hidden patches beside DINO's; 0: none are hidden
  config.dino.hidden_area = (0.1, 0.5)  # smallest and largest part of a view that is hidden
  config.dino.koleo = 0.1  # weight of the loss that spreads a batch's features; 0: none

  config.objective = ConfigDict(type_safe=False)
  # 'sigmoid', for multi-label too; 'focal', of the same scores; 'softmax_focal'; or 'module:name'
  config.objective.loss = 'softmax'
  config.objective.scores = ''  # what logits become, softmax or sigmoid; '': what the loss says
  config.objective.smoothing = 0.0  # label smoothing
  config.objective.mixup = 0.0  # a of Beta(a, a), by which images of a batch are blended; 0: not
  config.objective.cutmix = 0.0  # the same for a box of one in another; with mixup, either in turn
  config.objective.class_weights = ''  # 'balanced', or a .json or .csv of each class's weight
  config.objective.gamma = 2.0  # of the focal losses: how little is learned from what is sure

  config.teacher = ConfigDict(type_safe=False)  # a model that is learned from too, docs/teacher.md
  config.teacher.checkpoint = ''  # a run, file, URL or published name; '': none
  # 'logits' and 'hard', its likeliest class, for the logits; 'token' for the distillation token's
  # head (model.distillation='head'); 'features', for what the head reads.
  config.teacher.kind = 'logits'
  config.teacher.temperature = placeholder(float)  # None: 1 for logits; token learns hard answers
  config.teacher.weight = 0.5  # of the teacher's loss, in [0, 1]; the task's own has the rest

  config.lejepa = ConfigDict(type_safe=False)  # of the task 'lejepa', docs/without_labels.md
  config.lejepa.weight = 0.05  # of the distance from a normal distribution; views agree by the rest
  config.lejepa.directions = 1024  # in which it is measured, new ones in each step
  config.lejepa.points = 17  # of the integral over characteristic functions ...
  config.lejepa.t_max = 5.0  # ... from -t_max to t_max
  config.lejepa.hidden = 2048  # width of the projector's two hidden layers
  config.lejepa.outputs = 64  # dimensions of a projection

  config.mae = ConfigDict(type_safe=False)  # of the task 'mae', docs/without_labels.md
  config.mae.mask = 0.75  # fraction of an image's patches that is hidden; 0: an autoencoder
  config.mae.normalise = True  # each patch's pixels are predicted less their mean, by deviation
  config.mae.decoder_depth = 8  # layers
  config.mae.decoder_width = 512
  config.mae.decoder_heads = 16

  config.optimizer = ConfigDict(type_safe=False)
  config.optimizer.name = 'adamw'  # 'sgd', 'adam', 'adafactor', 'lion', 'lamb', 'muon'
  config.optimizer.weight_decay = 0.1  # decoupled, times the learning rate; kernels only
  config.optimizer.weight_decay_end = placeholder(float)  # at the end, by a cosine; None: the same
  config.optimizer.clip = 1.0  # largest global norm of the gradient; 0: no limit
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.momentum = 0.9  # of sgd, adafactor and muon
  config.optimizer.nesterov = False
  config.optimizer.momentum_dtype = 'float32'  # of the stored first moment; 'bfloat16' halves it
  config.optimizer.layer_decay = 1.0  # of the learning rate, for each layer further from the head
  # Sharpness-aware minimisation takes two gradients per update; GSAM's radius follows the rate.
  config.optimizer.sam = 0.0  # radius that the parameters ascend by before the second; 0: none
  config.optimizer.gsam = 0.0  # alpha of GSAM, 0.4 to 0.6; needs sam; 0: plain SAM
  config.optimizer.sam_min = 0.0  # radius of GSAM at the lowest learning rate, schedule.end

  config.freeze = ConfigDict(type_safe=False)  # what is not trained
  config.freeze.body = False  # all but the head
  config.freeze.layers = 0  # the first so many, and all that comes before them
  config.freeze.names = ''  # a regular expression of whole parameter names; '': none

  config.schedule = ConfigDict(type_safe=False)
  config.schedule.name = 'cosine'  # 'linear', 'constant', 'rsqrt', 'step'
  config.schedule.learning_rate = 1e-3  # the highest, after warm-up
  config.schedule.warmup = '10000 steps'  # linear, from 0
  config.schedule.cooldown = '0 steps'  # linear, to 0
  config.schedule.end = 0.0  # where cosine and linear end
  config.schedule.begin = '0 steps'  # where it begins: a run that was extended begins it anew
  config.schedule.timescale = '10000 steps'  # of rsqrt
  config.schedule.boundaries = ()  # durations at which 'step' multiplies the rate ...
  config.schedule.factor = 0.1  # ... by this

  config.evaluation = ConfigDict(type_safe=False)
  config.evaluation.every = '1 epoch'
  # Ranks evaluations, the average's with ema: accuracy, loss, or another number of `vit evaluate`,
  # such as balanced_accuracy, f1_macro, auroc, mean_average_precision; '': the task's usual.
  config.evaluation.metric = ''
  config.evaluation.patience = '0 steps'  # without a better one, then stop; takes the best; 0: off

  config.evaluation.stop_on_collapse = False  # save and fail where features have collapsed
  # A labelled data set by whose nearest neighbours what would be delivered is measured, too, as by
  # `vit evaluate --method knn`: 'knn_accuracy', which evaluations can be ranked by; '': none.
  config.evaluation.knn = ''
  config.evaluation.knn_train = 'train'  # its split of the neighbours
  config.evaluation.knn_test = 'validation'  # its split that is measured
  config.evaluation.knn_k = 20  # neighbours that vote

  config.checkpoint = ConfigDict(type_safe=False)
  config.checkpoint.every = '1 epoch'  # and at each evaluation, at the end and when interrupted
  config.checkpoint.keep_latest = 1
  config.checkpoint.keep_best = 1

  # How a run is computed, not what: may differ when it is resumed.
  config.system = ConfigDict(type_safe=False)
  config.system.data = -1  # devices that split the batch; -1: all that the others leave
  config.system.fsdp = 1  # devices that split batch, parameters and optimiser state
  config.system.tensor = 1  # devices that split heads, MLP channels and classes
  config.system.threads = 2  # that read and transform images, per worker
  config.system.workers = 0  # processes that do so beside the main one, per host
  config.system.prefetch = 2  # batches on their way to the device
  config.system.data_timeout = 300.0  # seconds without data, then new threads or workers read on
  config.system.log_every = placeholder(str)  # None: a hundredth of the run, at most 50 steps
  config.system.logger = ''  # 'package.module:name', beside metrics.jsonl and TensorBoard
  config.system.report = True  # report.html and report.png at the end

  return config
