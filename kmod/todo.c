// SPDX-License-Identifier: GPL-2.0-only
/* Scaffolding: each handler moves to the file of its object. */
#include "private.h"

#define TODO(name) \
	int dmaprobe_op_##name(struct dmaprobe_ucmd *ucmd) { return -EOPNOTSUPP; }

TODO(nop)
TODO(stats)
TODO(run)
TODO(bench)
