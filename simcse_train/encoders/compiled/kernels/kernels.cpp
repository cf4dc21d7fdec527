// All kernels as one unit. `build.py` compiles it; `library.py` reads the structures of arguments from these files.
#include "adamw.h"
#include "add_norm.h"
#include "attention.h"
#include "embedding.h"
#include "gelu.h"
#include "transpose.h"
