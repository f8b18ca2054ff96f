// The umbrella: `import Graft` gives every layer.
@_exported import Backbones
@_exported import Formats
@_exported import PEFT
@_exported import Tokenizers
@_exported import Torch
@_exported import Training
