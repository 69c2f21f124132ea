// SPDX-License-Identifier: GPL-2.0-only
/* What calls cost: a command that does nothing, and the kernel's calls in a loop. */
#include <linux/dma-mapping.h>
#include <linux/ktime.h>

#include "private.h"

#define BENCH_MAX_COUNT	10000000

/* Rounds between two looks at signals, the scheduler and the device. */
#define BENCH_BATCH	64

static int bench_nop(struct dmaprobe_ucmd *ucmd, u32 count)
{
	struct dmaprobe_bench *cmd = ucmd->cmd;
	int (*handler)(struct dmaprobe_ucmd *ucmd) = dmaprobe_op_nop;
	u64 start;

	OPTIMIZER_HIDE_VAR(handler);
	start = ktime_get_ns();
	while (count--)
		handler(ucmd);
	cmd->ns += ktime_get_ns() - start;
	return 0;
}

static int bench_map_page(struct dmaprobe_ucmd *ucmd, u32 count)
{
	struct dmaprobe_bench *cmd = ucmd->cmd;
	struct device *dev = dmaprobe_dma_dev(ucmd->session);
	unsigned long attrs = dmaprobe_map_attrs(ucmd->session, 0);
	phys_addr_t phys;
	u64 start;
	int ret;

	struct dmaprobe_buffer *buf __free(dmaprobe_buffer_put) =
		dmaprobe_buffer_get(ucmd, cmd->buffer_id);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	ret = dmaprobe_buffer_range(buf, 0, PAGE_SIZE, DMAPROBE_DIR_TO_DEVICE, &phys) ?:
	      dmaprobe_check_reach(ucmd->session->dd, phys, PAGE_SIZE, DMA_TO_DEVICE, 0);
	if (ret)
		return ret;

	start = ktime_get_ns();
	while (count--) {
		dma_addr_t addr = dma_map_page_attrs(dev, pfn_to_page(PHYS_PFN(phys)),
						     offset_in_page(phys), PAGE_SIZE,
						     DMA_TO_DEVICE, attrs);

		ret = dma_mapping_error(dev, addr);
		if (ret)
			return ret;
		dma_unmap_page_attrs(dev, addr, PAGE_SIZE, DMA_TO_DEVICE, attrs);
	}
	cmd->ns += ktime_get_ns() - start;
	return 0;
}

/* One batch, with the device there. */
static int bench_batch(struct dmaprobe_ucmd *ucmd, u32 count)
{
	const struct dmaprobe_bench *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	int ret;

	guard(rwsem_read)(&s->dd->group->lock);
	if (s->dd->unplugged)
		return -ENODEV;
	if (cmd->kind == DMAPROBE_BENCH_NOP)
		return bench_nop(ucmd, count);
	ret = dmaprobe_address_get(s, 1);
	if (ret)
		return ret;
	ret = bench_map_page(ucmd, count);
	dmaprobe_address_put(s, 1);
	return ret;
}

int dmaprobe_op_bench(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_bench *cmd = ucmd->cmd;
	u64 left = cmd->count;

	if (cmd->kind > DMAPROBE_BENCH_MAP_PAGE || !cmd->count || cmd->count > BENCH_MAX_COUNT)
		return -EINVAL;
	if (cmd->kind == DMAPROBE_BENCH_NOP && cmd->buffer_id)
		return -EINVAL;

	cmd->ns = 0;
	for (;;) {
		u32 count = min(left, BENCH_BATCH);
		int ret = bench_batch(ucmd, count);

		if (ret)
			return ret;
		left -= count;
		if (!left)
			return 0;
		if (dmaprobe_interrupted())
			return -EINTR;
		cond_resched();
	}
}
