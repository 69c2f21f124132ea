// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA attributes: from the bits of the ABI to those of the kernel.
 *
 * The kernel's calls do not check them. Some WARN about an attribute that is not
 * theirs, others ignore it, so a command takes those that its call takes.
 */
#include <linux/capability.h>
#include <linux/dma-map-ops.h>

#include "compat.h"
#include "private.h"

/* By the bit in the ABI; 0 for what this kernel does not have. */
static const unsigned long kernel_attrs[] = {
	[const_ilog2(DMAPROBE_ATTR_WEAK_ORDERING)] = DMA_ATTR_WEAK_ORDERING,
	[const_ilog2(DMAPROBE_ATTR_WRITE_COMBINE)] = DMA_ATTR_WRITE_COMBINE,
	[const_ilog2(DMAPROBE_ATTR_NO_KERNEL_MAPPING)] = DMA_ATTR_NO_KERNEL_MAPPING,
	[const_ilog2(DMAPROBE_ATTR_SKIP_CPU_SYNC)] = DMA_ATTR_SKIP_CPU_SYNC,
	[const_ilog2(DMAPROBE_ATTR_FORCE_CONTIGUOUS)] = DMA_ATTR_FORCE_CONTIGUOUS,
	[const_ilog2(DMAPROBE_ATTR_ALLOC_SINGLE_PAGES)] = DMA_ATTR_ALLOC_SINGLE_PAGES,
	[const_ilog2(DMAPROBE_ATTR_NO_WARN)] = DMA_ATTR_NO_WARN,
	[const_ilog2(DMAPROBE_ATTR_PRIVILEGED)] = DMA_ATTR_PRIVILEGED,
	[const_ilog2(DMAPROBE_ATTR_MMIO)] = DMA_ATTR_MMIO,
	[const_ilog2(DMAPROBE_ATTR_REQUIRE_COHERENT)] = DMA_ATTR_REQUIRE_COHERENT,
	[const_ilog2(DMAPROBE_ATTR_CC_SHARED)] = DMA_ATTR_CC_SHARED,
};

/* The attributes that this kernel has, DMAPROBE_ATTR_*. */
u64 dmaprobe_attrs_offered(void)
{
	u64 attrs = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(kernel_attrs); i++)
		if (kernel_attrs[i])
			attrs |= BIT_ULL(i);
	return attrs;
}

/* Turn attributes that were checked into the kernel's, DMA_ATTR_*. */
unsigned long dmaprobe_kernel_attrs(u64 attrs)
{
	unsigned long out = 0;
	unsigned int i;

	if (likely(!attrs))
		return 0;
	for (i = 0; i < ARRAY_SIZE(kernel_attrs); i++)
		if (attrs & BIT_ULL(i))
			out |= kernel_attrs[i];
	return out;
}

/*
 * Check the attributes that a caller gave. Returns 0; -EOPNOTSUPP for unknown ones and those that
 * this kernel does not have; -EINVAL for those that the command does not take.
 */
int dmaprobe_check_attrs(u64 attrs, u64 taken)
{
	if (likely(!attrs))
		return 0;
	if (attrs & ~dmaprobe_attrs_offered())
		return -EOPNOTSUPP;
	return attrs & ~taken ? -EINVAL : 0;
}

/*
 * The same for a call that maps. Returns the same; -EOPNOTSUPP also when coherence is
 * required of a device that has none; -EPERM when a capability is missing.
 */
int dmaprobe_check_map_attrs(const struct dmaprobe_session *s, u64 attrs, u64 taken)
{
	int ret = dmaprobe_check_attrs(attrs, taken);

	if (ret)
		return ret;
	if ((attrs & DMAPROBE_ATTR_REQUIRE_COHERENT) && !dev_is_dma_coherent(dmaprobe_dma_dev(s)))
		return -EOPNOTSUPP;
	/* The device would get memory that is not shared by an address that is. */
	if ((attrs & DMAPROBE_ATTR_CC_SHARED) && !capable(CAP_SYS_RAWIO))
		return -EPERM;
	return 0;
}

/*
 * The kernel's attributes for a mapping.
 *
 * A program may map its memory as often as it likes, without a warning; and full bounce buffers
 * are no news for the kernel log when anybody can fill them. Returns DMA_ATTR_*.
 */
unsigned long dmaprobe_map_attrs(const struct dmaprobe_session *s, u64 attrs)
{
	return dmaprobe_kernel_attrs(attrs) | DMAPROBE_MAY_OVERLAP |
	       (s->privileged ? 0 : DMA_ATTR_NO_WARN);
}
