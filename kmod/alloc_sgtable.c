// SPDX-License-Identifier: GPL-2.0-only
/* How allocations lie in physical memory. */
#include <linux/capability.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>

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
	case DMAPROBE_ALLOC_KIND_COHERENT:
		ret = dma_get_sgtable_attrs(a->dev, room, a->cpu, a->addr, a->mem.length, a->attrs);
		if (ret)
			return ERR_PTR(ret == -ENOMEM ? ret : -ENXIO);
		return room;
	case DMAPROBE_ALLOC_KIND_NONCONTIGUOUS:
		return a->sgt;
	default:
		ret = sg_alloc_table(room, 1, DMAPROBE_GFP);
		if (ret)
			return ERR_PTR(ret);
		sg_set_page(room->sgl, virt_to_page(a->cpu), PAGE_ALIGN(a->mem.length), 0);
		return room;
	}
}

/* What is to be known of the pieces that an allocation is made of. */
struct dmaprobe_pieces {
	u32 nr;

	struct page **pages;		/* or NULL */
	unsigned long nr_pages;

	struct dmaprobe_sgtable_entry *entries;
	u32 room;			/* for that many */
	bool phys;			/* with their addresses */
};

/* Record one piece. */
static void add_piece(struct dmaprobe_pieces *p, struct scatterlist *sg, u64 length,
		      unsigned long max_pages)
{
	unsigned long i;

	if (p->nr < p->room) {
		p->entries[p->nr].length = length;
		p->entries[p->nr].phys = p->phys ? sg_phys(sg) : 0;
	}
	p->nr++;
	for (i = 0; p->pages && i < PFN_UP(length) && p->nr_pages < max_pages; i++)
		p->pages[p->nr_pages++] = sg_page(sg) + i;
}

/* Visit all pieces, of which the last ends with the allocation. */
static int find_pieces(struct dmaprobe_allocation *a, struct dmaprobe_pieces *p)
{
	u64 left = a->mem.length;
	struct sg_table room, *sgt;
	struct scatterlist *sg;
	int i;

	sgt = get_table(a, &room);
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);
	for_each_sgtable_sg(sgt, sg, i) {
		u64 length = min_t(u64, left, sg->length);

		if (!length)
			break;
		add_piece(p, sg, length, a->mem.nr_pages);
		left -= length;
		cond_resched();
	}
	if (sgt == &room)
		sg_free_table(&room);
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
	struct dmaprobe_pieces p = {};
	int ret;

	a->mem.pages = kvmalloc_array(a->mem.nr_pages, sizeof(*a->mem.pages), DMAPROBE_GFP);
	if (!a->mem.pages)
		return -ENOMEM;
	p.pages = a->mem.pages;
	ret = find_pieces(a, &p);
	if (ret == -ENXIO || (!ret && p.nr_pages != a->mem.nr_pages)) {
		kvfree(a->mem.pages);
		a->mem.pages = NULL;
		*nr_pieces = 0;
		return 0;
	}
	*nr_pieces = p.nr;
	return ret ?: dmaprobe_memory_index(&a->mem, DMAPROBE_GFP);
}

int dmaprobe_op_get_sgtable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_get_sgtable *cmd = ucmd->cmd;
	struct dmaprobe_pieces p = { .phys = cmd->flags & DMAPROBE_SGTABLE_PHYS };
	struct dmaprobe_allocation *a;
	int ret;

	if (p.phys && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	/* No piece is smaller than a page. */
	p.room = min(cmd->nr_entries, DMAPROBE_ALLOC_MAX >> PAGE_SHIFT);
	ret = dmaprobe_reply_array(ucmd, cmd->entries, p.room, sizeof(*p.entries));
	if (ret)
		return ret;
	p.entries = ucmd->array;
	guard(rwsem_read)(&ucmd->session->dd->group->lock);
	if (ucmd->session->dd->unplugged)
		return -ENODEV;
	a = dmaprobe_allocation_get(ucmd, cmd->id);
	if (IS_ERR(a))
		return PTR_ERR(a);
	ret = find_pieces(a, &p);
	dmaprobe_object_put(&a->mem.obj);
	/* Copy out only the entries that were filled in. */
	ucmd->array_size = min(p.nr, p.room) * sizeof(*p.entries);
	cmd->nr_entries = p.nr;
	return ret;
}
