// What the second bodies of cuda/arch are written with: the thread, shared memory, and a list of what has run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>

#include "host_cuda/coverage.h"
#include "host_cuda/engine.h"
#include "host_cuda/shared_memory.h"
