// zlib, which reads and writes gzip files.
#include <zlib.h>
