// SPDX-License-Identifier: GPL-2.0-only
/* Scaffolding: each handler moves to the file of its object. */
#include "private.h"

#define TODO(name) \
	int dmaprobe_op_##name(struct dmaprobe_ucmd *ucmd) { return -EOPNOTSUPP; }

TODO(nop)
TODO(stats)
TODO(run)
TODO(bench)
TODO(set_segments)
TODO(map_sg)
TODO(map_resource)
TODO(map_dmabuf)
TODO(segments)
TODO(alloc)
TODO(alloc_free)
TODO(sgtable)
TODO(export)
TODO(pool_create)
TODO(pool_destroy)
TODO(pool_alloc)
TODO(pool_free)
