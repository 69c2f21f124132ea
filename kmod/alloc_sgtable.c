// SPDX-License-Identifier: GPL-2.0-only
/*
 * How allocations lie in physical memory.
 */
#include <linux/capability.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

/*
 * The table of the pieces an allocation is made of: its own, or made in @room. -ENXIO
 * when the kernel does not know them.
 */
static struct sg_table *get_table(struct dmaprobe_allocation *a, struct sg_table *room)
{
	int ret;

	switch (a->kind) {
	case DMAPROBE_ALLOC_COHERENT:
		ret = dma_get_sgtable_attrs(a->dev, room, a->cpu, a->addr,
					    a->mem.length, a->attrs);
		if (ret)
			return ERR_PTR(ret == -ENOMEM ? ret : -ENXIO);
		return room;
	case DMAPROBE_ALLOC_NONCONTIGUOUS:
		return a->sgt;
	default:
		ret = sg_alloc_table(room, 1, GFP_KERNEL);
		if (ret)
			return ERR_PTR(ret);
		sg_set_page(room->sgl, virt_to_page(a->cpu), PAGE_ALIGN(a->mem.length), 0);
		return room;
	}
}

static void put_table(struct sg_table *sgt, struct sg_table *room)
{
	if (sgt == room)
		sg_free_table(room);
}

/* Call @fn for each piece, of which the last ends with the allocation. */
static int
visit_pieces(struct dmaprobe_allocation *a, void *data,
	     int (*fn)(void *data, struct scatterlist *sg, u64 length))
{
	u64 left = a->mem.length;
	struct sg_table room, *sgt;
	struct scatterlist *sg;
	int ret = 0, i;

	sgt = get_table(a, &room);
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);
	for_each_sgtable_sg(sgt, sg, i) {
		u64 length = min_t(u64, left, sg->length);

		if (!length)
			break;
		ret = fn(data, sg, length);
		if (ret)
			break;
		left -= length;
		cond_resched();
	}
	put_table(sgt, &room);
	return ret;
}

struct dmaprobe_collect {
	struct dmaprobe_memory *mem;
	unsigned long nr_pages;
	u32 nr_pieces;
};

static int collect_pages(void *data, struct scatterlist *sg, u64 length)
{
	struct dmaprobe_collect *c = data;
	unsigned long i;

	for (i = 0; i < PFN_UP(length) && c->nr_pages < c->mem->nr_pages; i++)
		c->mem->pages[c->nr_pages++] = sg_page(sg) + i;
	c->nr_pieces++;
	return 0;
}

/*
 * Find the pages of an allocation. Returns 0 or -ENOMEM.
 *
 * @nr_pieces: out: of how many pieces it is made; 0 when the kernel does not know them,
 * which is no failure.
 */
int dmaprobe_allocation_find_pages(struct dmaprobe_allocation *a, u32 *nr_pieces)
{
	struct dmaprobe_collect c = { .mem = &a->mem };
	int ret;

	a->mem.pages = kvmalloc_array(a->mem.nr_pages, sizeof(*a->mem.pages), GFP_KERNEL);
	if (!a->mem.pages)
		return -ENOMEM;
	ret = visit_pieces(a, &c, collect_pages);
	if (ret == -ENXIO || (!ret && c.nr_pages != a->mem.nr_pages)) {
		kvfree(a->mem.pages);
		a->mem.pages = NULL;
		*nr_pieces = 0;
		return 0;
	}
	*nr_pieces = c.nr_pieces;
	return ret ?: dmaprobe_memory_index(&a->mem);
}

struct dmaprobe_pieces {
	struct dmaprobe_sgtable_entry *out;
	u32 room;
	u32 nr;
	bool phys;
};

static int report_piece(void *data, struct scatterlist *sg, u64 length)
{
	struct dmaprobe_pieces *p = data;

	if (p->nr < p->room) {
		p->out[p->nr].length = length;
		p->out[p->nr].phys = p->phys ? sg_phys(sg) : 0;
	}
	p->nr++;
	return 0;
}

int dmaprobe_op_get_sgtable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_sgtable *cmd = ucmd->cmd;
	struct dmaprobe_pieces p = { .phys = cmd->flags & DMAPROBE_SGTABLE_PHYS };
	struct dmaprobe_allocation *a;
	int ret;

	if (p.phys && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	a = dmaprobe_allocation_get(ucmd, cmd->id);
	if (IS_ERR(a))
		return PTR_ERR(a);
	/* No piece is smaller than a page. */
	p.room = min(cmd->nr_entries, a->mem.nr_pages);
	ret = dmaprobe_reply_array(ucmd, cmd->entries, p.room, sizeof(*p.out));
	if (!ret) {
		p.out = ucmd->array;
		ret = visit_pieces(a, &p, report_piece);
	}
	dmaprobe_object_put(&a->mem.obj);
	/* Copy out only the entries that were filled in. */
	ucmd->array_size = min(p.nr, p.room) * sizeof(*p.out);
	cmd->nr_entries = p.nr;
	return ret;
}
