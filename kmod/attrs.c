// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMA attributes: from the bits of the ABI to those of the kernel.
 *
 * The kernel's calls do not check them. Some WARN about an attribute that is not
 * theirs, others ignore it, so a command takes those that its call takes.
 */
#include <linux/dma-map-ops.h>

#include "compat.h"
#include "private.h"

/* By the bit in the ABI; 0 for what this kernel does not have. */
static const unsigned long kernel_attrs[] = {
	[const_ilog2(DMAPROBE_ATTR_WEAK_ORDERING)] = DMA_ATTR_WEAK_ORDERING,
	[const_ilog2(DMAPROBE_ATTR_WRITE_COMBINE)] = DMA_ATTR_WRITE_COMBINE,
	[const_ilog2(DMAPROBE_ATTR_NO_KERNEL_MAPPING)] =
		DMA_ATTR_NO_KERNEL_MAPPING,
	[const_ilog2(DMAPROBE_ATTR_SKIP_CPU_SYNC)] = DMA_ATTR_SKIP_CPU_SYNC,
	[const_ilog2(DMAPROBE_ATTR_FORCE_CONTIGUOUS)] =
		DMA_ATTR_FORCE_CONTIGUOUS,
	[const_ilog2(DMAPROBE_ATTR_ALLOC_SINGLE_PAGES)] =
		DMA_ATTR_ALLOC_SINGLE_PAGES,
	[const_ilog2(DMAPROBE_ATTR_NO_WARN)] = DMA_ATTR_NO_WARN,
	[const_ilog2(DMAPROBE_ATTR_PRIVILEGED)] = DMA_ATTR_PRIVILEGED,
	[const_ilog2(DMAPROBE_ATTR_MMIO)] = DMA_ATTR_MMIO,
	[const_ilog2(DMAPROBE_ATTR_REQUIRE_COHERENT)] =
		DMA_ATTR_REQUIRE_COHERENT,
};

/**
 * dmaprobe_attrs - check attributes and turn them into the kernel's
 * @attrs: DMAPROBE_ATTR_*, as the user gave them
 * @taken: those that the command takes
 * @out: out: DMA_ATTR_*
 *
 * Return: 0; -EOPNOTSUPP for what nobody knows or this kernel does not have;
 * -EINVAL for what the command does not take
 */
int dmaprobe_attrs(u64 attrs, u64 taken, unsigned long *out)
{
	unsigned int i;

	*out = 0;
	if (likely(!attrs))
		return 0;
	if (attrs >> ARRAY_SIZE(kernel_attrs))
		return -EOPNOTSUPP;
	for (i = 0; i < ARRAY_SIZE(kernel_attrs); i++) {
		if (!(attrs & BIT_ULL(i)))
			continue;
		if (!kernel_attrs[i])
			return -EOPNOTSUPP;
		*out |= kernel_attrs[i];
	}
	return attrs & ~taken ? -EINVAL : 0;
}

/**
 * dmaprobe_map_attrs - dmaprobe_attrs() for a call that maps
 * @s: the session that maps
 * @attrs: DMAPROBE_ATTR_*, as the user gave them
 * @taken: those that the command takes
 * @out: out: DMA_ATTR_*
 *
 * Return: as dmaprobe_attrs(); -EOPNOTSUPP also when coherence is required of a
 * device that has none
 */
int dmaprobe_map_attrs(const struct dmaprobe_session *s, u64 attrs, u64 taken,
		       unsigned long *out)
{
	int ret = dmaprobe_attrs(attrs, taken, out);

	if (ret)
		return ret;
	if ((attrs & DMAPROBE_ATTR_REQUIRE_COHERENT) &&
	    !dev_is_dma_coherent(dmaprobe_dma_dev(s)))
		return -EOPNOTSUPP;
	return 0;
}
