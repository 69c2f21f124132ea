// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocations: memory that the DMA API allocates and maps for the device.
 *
 * The DMA API must get this memory back while the device is bound, whoever uses it
 * then. So the memory goes when the object is destroyed, or is revoked: when the
 * session ends or the device goes away. The object, without the memory, lasts as long
 * as an mmap (alloc_mmap.c), a dma-buf (export.c) or a walk holds it.
 */
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "private.h"

#define COHERENT_ATTRS	(DMAPROBE_ATTR_WEAK_ORDERING |			\
			 DMAPROBE_ATTR_WRITE_COMBINE |			\
			 DMAPROBE_ATTR_NO_KERNEL_MAPPING |		\
			 DMAPROBE_ATTR_FORCE_CONTIGUOUS |		\
			 DMAPROBE_ATTR_ALLOC_SINGLE_PAGES |		\
			 DMAPROBE_ATTR_NO_WARN |			\
			 DMAPROBE_ATTR_PRIVILEGED)

static struct dmaprobe_allocation *to_allocation(struct dmaprobe_object *obj)
{
	return container_of(obj, struct dmaprobe_allocation, mem.obj);
}

/*
 * dma-direct does not zero memory that is to have no kernel mapping, and gives its
 * struct page instead of an address.
 */
static void zero_unmapped(const struct dmaprobe_session *s, struct dmaprobe_allocation *a)
{
	struct page *page;
	unsigned long i;

	if (!(a->attrs & DMA_ATTR_NO_KERNEL_MAPPING) || dmaprobe_translates(s->dd))
		return;
	page = pfn_to_page(PHYS_PFN(dma_to_phys(a->dev, a->addr)));
	for (i = 0; a->cpu == page && i < a->mem.nr_pages; i++) {
		clear_highpage(page + i);
		cond_resched();
	}
}

static void free_memory(struct dmaprobe_allocation *a)
{
	size_t length = a->mem.length;

	switch (a->kind) {
	case DMAPROBE_ALLOC_KIND_COHERENT:
		dma_free_attrs(a->dev, length, a->cpu, a->addr, a->attrs);
		break;
	case DMAPROBE_ALLOC_KIND_NONCOHERENT:
		dma_free_noncoherent(a->dev, length, a->cpu, a->addr, a->dir);
		break;
	case DMAPROBE_ALLOC_KIND_PAGES:
		dma_free_pages(a->dev, length, virt_to_page(a->cpu), a->addr, a->dir);
		break;
	default:
		if (a->cpu)
			dma_vunmap_noncontiguous(a->dev, a->cpu);
		dma_free_noncontiguous(a->dev, length, a->sgt, a->dir);
		break;
	}
}

static int alloc_memory(const struct dmaprobe_session *s, struct dmaprobe_allocation *a)
{
	size_t length = a->mem.length;
	struct page *page;

	switch (a->kind) {
	case DMAPROBE_ALLOC_KIND_COHERENT:
		a->cpu = dma_alloc_attrs(a->dev, length, &a->addr, DMAPROBE_ALLOC_GFP, a->attrs);
		break;
	case DMAPROBE_ALLOC_KIND_NONCOHERENT:
		a->cpu = dma_alloc_noncoherent(a->dev, length, &a->addr, a->dir,
					       DMAPROBE_ALLOC_GFP);
		break;
	case DMAPROBE_ALLOC_KIND_PAGES:
		page = dma_alloc_pages(a->dev, length, &a->addr, a->dir, DMAPROBE_ALLOC_GFP);
		a->cpu = page ? page_address(page) : NULL;
		break;
	default:
		a->sgt = dma_alloc_noncontiguous(a->dev, length, a->dir, DMAPROBE_ALLOC_GFP,
						 a->attrs);
		if (!a->sgt)
			return -ENOMEM;
		a->addr = sg_dma_address(a->sgt->sgl);
		return 0;
	}
	if (a->cpu)
		zero_unmapped(s, a);
	return a->cpu ? 0 : -ENOMEM;
}

/*
 * The pages that the kernel takes: those asked for where it maps them one by one,
 * otherwise a power of two.
 */
static unsigned long nr_taken(const struct dmaprobe_session *s, const struct dmaprobe_allocation *a)
{
	bool by_page = a->kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS ||
		       (a->kind == DMAPROBE_ALLOC_KIND_COHERENT &&
			!(a->attrs & DMA_ATTR_FORCE_CONTIGUOUS));

	if (by_page && dmaprobe_translates(s->dd))
		return a->mem.nr_pages;
	return 1UL << get_order(a->mem.length);
}

static void give_back(struct dmaprobe_session *s, struct dmaprobe_allocation *a)
{
	free_memory(a);
	dmaprobe_uncharge(s, nr_taken(s, a));
	dmaprobe_address_put(s, a->mem.obj.nr_addresses);
}

static void allocation_disconnect(struct dmaprobe_object *obj)
{
	struct dmaprobe_allocation *a = to_allocation(obj);

	dmaprobe_wait_for_mmaps(a);
	unmap_mapping_range(obj->session->inode->i_mapping, dmaprobe_mmap_offset(obj->id),
			    PAGE_ALIGN(a->mem.length), true);
	dmaprobe_export_revoke(a);
}

static void allocation_revoke(struct dmaprobe_object *obj)
{
	give_back(obj->session, to_allocation(obj));
}

static void allocation_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_allocation *a = to_allocation(obj);

	/* With the memory, the session may be gone as well. */
	if (!a->revoked)
		give_back(obj->session, a);
	cancel_delayed_work_sync(&a->views_work);
	dmaprobe_memory_free(&a->mem);
	dma_resv_fini(&a->resv);
	kfree_rcu(a, mem.obj.rcu);
}

/* The address for the CPU, made at the first use for noncontiguous memory. */
static void *kernel_address(struct dmaprobe_allocation *a)
{
	void *new;

	if (a->kind != DMAPROBE_ALLOC_KIND_NONCONTIGUOUS || READ_ONCE(a->cpu))
		return a->cpu;
	new = dma_vmap_noncontiguous(a->dev, a->mem.length, a->sgt);
	if (new && cmpxchg(&a->cpu, NULL, new))
		dma_vunmap_noncontiguous(a->dev, new);
	return a->cpu;
}

static int allocation_copy(struct dmaprobe_object *obj, const struct dmaprobe_copy *cmd,
			   const struct dmaprobe_copy_part *part)
{
	struct dmaprobe_allocation *a = to_allocation(obj);
	bool remapped = a->kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS;
	void *cpu;

	if (!dmaprobe_copy_fits(cmd, a->mem.length))
		return -EINVAL;
	if (a->attrs & DMA_ATTR_NO_KERNEL_MAPPING)
		return -EOPNOTSUPP;
	cpu = kernel_address(a);
	if (!cpu)
		return -ENOMEM;
	cpu += part->offset;

	/* Caches may know the memory by several addresses. */
	if (remapped && cmd->dir == DMAPROBE_COPY_READ)
		invalidate_kernel_vmap_range(cpu, part->length);
	dmaprobe_copy_part(cmd, part, cpu);
	if (remapped && cmd->dir == DMAPROBE_COPY_WRITE)
		flush_kernel_vmap_range(cpu, part->length);
	return 0;
}

static int allocation_sync(struct dmaprobe_object *obj, const struct dmaprobe_sync *cmd)
{
	struct dmaprobe_allocation *a = to_allocation(obj);
	u64 length = a->mem.length;

	if (a->kind == DMAPROBE_ALLOC_KIND_COHERENT)
		return -EOPNOTSUPP;
	if (cmd->length > length || cmd->offset > length - cmd->length)
		return -EINVAL;
	if (a->kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS && cmd->length != length)
		return -EINVAL;
	dmaprobe_allocation_sync(a, cmd->target, cmd->offset, cmd->length);
	return 0;
}

/* Synchronise memory that is not revoked: noncontiguous memory as a whole. */
void dmaprobe_allocation_sync(struct dmaprobe_allocation *a, u32 target, u64 offset, u64 length)
{
	bool for_cpu = target == DMAPROBE_SYNC_FOR_CPU;

	switch (a->kind) {
	case DMAPROBE_ALLOC_KIND_COHERENT:
		break;
	case DMAPROBE_ALLOC_KIND_NONCONTIGUOUS:
		if (for_cpu)
			dma_sync_sgtable_for_cpu(a->dev, a->sgt, a->dir);
		else
			dma_sync_sgtable_for_device(a->dev, a->sgt, a->dir);
		break;
	default:
		if (for_cpu)
			dma_sync_single_range_for_cpu(a->dev, a->addr, offset, length, a->dir);
		else
			dma_sync_single_range_for_device(a->dev, a->addr, offset, length, a->dir);
		break;
	}
}

static int allocation_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_allocation *a = to_allocation(obj);

	return dmaprobe_reply_segment(ucmd, a->addr, a->mem.length);
}

static int allocation_mmap(struct dmaprobe_object *obj,
			   struct vm_area_struct *vma, unsigned long first_page)
{
	return dmaprobe_allocation_mmap(to_allocation(obj), vma, first_page);
}

static const struct dmaprobe_object_type allocation_type = {
	.release = allocation_release,
	.disconnect = allocation_disconnect,
	.revoke = allocation_revoke,
	.end_cmd = DMAPROBE_DESTROY,
	.has_address = true,
	.has_pages = true,
	.stats = offsetof(struct dmaprobe_get_stats, nr_allocs),
	.mmap = allocation_mmap,
	.copy = allocation_copy,
	.sync = allocation_sync,
	.segments = allocation_segments,
};

/* Look an allocation up and hold it. */
struct dmaprobe_allocation *dmaprobe_allocation_get(struct dmaprobe_ucmd *ucmd, u32 id)
{
	struct dmaprobe_object *obj = dmaprobe_object_get(ucmd, id, &allocation_type);

	return IS_ERR(obj) ? ERR_CAST(obj) : to_allocation(obj);
}

static int check_alloc(const struct dmaprobe_alloc *cmd)
{
	u64 taken = 0;

	if (cmd->kind > DMAPROBE_ALLOC_KIND_NONCONTIGUOUS || !dmaprobe_valid_dir(cmd->dir) ||
	    !cmd->length || cmd->length > DMAPROBE_ALLOC_MAX)
		return -EINVAL;
	if (cmd->kind == DMAPROBE_ALLOC_KIND_COHERENT) {
		if (cmd->dir != DMAPROBE_DIR_BIDIRECTIONAL)
			return -EINVAL;
		taken = COHERENT_ATTRS;
	} else if (cmd->kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS) {
		taken = DMAPROBE_ATTR_ALLOC_SINGLE_PAGES;
	}
	return dmaprobe_check_attrs(cmd->attrs, taken);
}

/*
 * Have the kernel find so much memory before others must wait for it: under the lock it gives up
 * early. What others take meanwhile is missing, and the allocation fails.
 */
static int make_room(struct dmaprobe_session *s, u64 length)
{
	void *room;

	if ((long)PFN_UP(length) > si_mem_available() || dmaprobe_charge(s, PFN_UP(length)))
		return -ENOMEM;
	room = __vmalloc(length, GFP_KERNEL | __GFP_NOWARN | __GFP_RETRY_MAYFAIL);
	vfree(room);
	dmaprobe_uncharge(s, PFN_UP(length));
	return room ? 0 : dmaprobe_cancelled() ? -EINTR : -ENOMEM;
}

/* Whether the zeroes are in memory before the device has it, not in a cache or to come. */
static bool is_cleared_first(const struct dmaprobe_session *s, const struct dmaprobe_alloc *cmd)
{
	if (!dmaprobe_translates(s->dd))
		return !(cmd->attrs & DMAPROBE_ATTR_NO_KERNEL_MAPPING) ||
		       dev_is_dma_coherent(dmaprobe_dma_dev(s));
	/* dma_common_alloc_pages() maps memory of CMA before it clears it. */
	return s->privileged || !IS_ENABLED(CONFIG_DMA_CMA) || want_init_on_alloc(0) ||
	       (cmd->kind != DMAPROBE_ALLOC_KIND_NONCOHERENT &&
		cmd->kind != DMAPROBE_ALLOC_KIND_PAGES);
}

int dmaprobe_op_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_allocation *a;
	int ret, room;

	ret = check_alloc(cmd);
	if (ret)
		return ret;
	room = make_room(s, cmd->length);
	guard(rwsem_read)(&s->dd->group->lock);
	if (s->dd->unplugged)
		return -ENODEV;
	if (cmd->kind == DMAPROBE_ALLOC_KIND_NONCONTIGUOUS &&
	    !dmaprobe_one_segment(dmaprobe_dma_dev(s), cmd->length))
		return -EINVAL;
	if (room || !is_cleared_first(s, cmd))
		return room ?: -EOPNOTSUPP;

	a = kzalloc_obj(*a, DMAPROBE_GFP);
	if (!a)
		return -ENOMEM;
	spin_lock_init(&a->lock);
	INIT_LIST_HEAD(&a->views);
	INIT_DELAYED_WORK(&a->views_work, dmaprobe_look_at_views);
	dma_resv_init(&a->resv);
	mutex_init(&a->exports_lock);
	INIT_LIST_HEAD(&a->exports);
	a->dev = dmaprobe_dma_dev(s);
	a->kind = cmd->kind;
	a->dir = cmd->dir;
	a->attrs = dmaprobe_kernel_attrs(cmd->attrs);
	a->mem.length = cmd->length;
	a->mem.nr_pages = PFN_UP(cmd->length);

	ret = dmaprobe_charge(s, nr_taken(s, a));
	if (ret)
		goto err_free;
	ret = dmaprobe_object_add(s, &a->mem.obj, &allocation_type);
	if (ret)
		goto err_uncharge;
	ret = alloc_memory(s, a);
	if (ret)
		goto err_cancel;
	ret = dmaprobe_allocation_find_pages(a, &a->nr_pieces);
	cmd->nr_entries = a->nr_pieces;
	if (ret)
		goto err_memory;

	cmd->id = a->mem.obj.id;
	cmd->dma_addr = a->addr;
	cmd->mmap_offset = dmaprobe_mmap_offset(cmd->id);
	dmaprobe_object_made(ucmd, &a->mem.obj);
	ucmd->iova = a->addr;
	ucmd->length = cmd->length;
	return 0;

err_memory:
	dmaprobe_memory_free(&a->mem);
	free_memory(a);
err_cancel:
	dmaprobe_object_cancel(&a->mem.obj);
err_uncharge:
	dmaprobe_uncharge(s, nr_taken(s, a));
err_free:
	dma_resv_fini(&a->resv);
	kfree_rcu(a, mem.obj.rcu);
	return ret;
}
