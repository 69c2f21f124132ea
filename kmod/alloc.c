// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allocations: memory that the DMA API allocates and maps for the device.
 *
 * The DMA API must get this memory back while the device is bound, whoever uses it
 * then. So the memory goes when the object is destroyed, or is revoked: when the
 * session ends or the device goes away. The object, without the memory, lasts as
 * long as somebody holds it.
 *
 * Those who can hold it that long are views, one for each mmap() and all that
 * became of it by fork(), mremap() and munmap() of a part; and a dma-buf.
 */
#include <linux/capability.h>
#include <linux/dma-direct.h>
#include <linux/dma-map-ops.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "private.h"

#define ALLOC_MAX_LENGTH	SZ_1G

/*
 * A failure is the caller's to deal with: nothing is logged, and nobody is killed
 * to make room for it.
 */
#define ALLOC_GFP	(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN | \
			 __GFP_RETRY_MAYFAIL)

#define COHERENT_ATTRS	(DMAPROBE_ATTR_WEAK_ORDERING |			\
			 DMAPROBE_ATTR_WRITE_COMBINE |			\
			 DMAPROBE_ATTR_NO_KERNEL_MAPPING |		\
			 DMAPROBE_ATTR_FORCE_CONTIGUOUS |		\
			 DMAPROBE_ATTR_ALLOC_SINGLE_PAGES |		\
			 DMAPROBE_ATTR_NO_WARN |			\
			 DMAPROBE_ATTR_PRIVILEGED)

static_assert(offsetof(struct dmaprobe_allocation, mem) == 0);

static struct dmaprobe_allocation *to_allocation(struct dmaprobe_object *obj)
{
	return container_of(obj, struct dmaprobe_allocation, mem.obj);
}

/*
 * dma-direct does not zero memory that is to have no kernel mapping, and gives its
 * struct page instead of an address. Zeroes that stay in the CPU's caches would
 * not do, and drivers cannot write those back.
 */
static int zero_unmapped(const struct dmaprobe_session *s,
			 struct dmaprobe_allocation *a)
{
	struct page *page;
	unsigned long i;

	if (!(a->attrs & DMA_ATTR_NO_KERNEL_MAPPING) ||
	    dmaprobe_translates(s->dd))
		return 0;
	page = pfn_to_page(PHYS_PFN(dma_to_phys(a->dev, a->addr)));
	if (a->cpu != page)
		return 0;
	if (!dev_is_dma_coherent(a->dev))
		return -EOPNOTSUPP;
	for (i = 0; i < a->mem.nr_pages; i++) {
		clear_highpage(page + i);
		cond_resched();
	}
	return 0;
}

static void free_memory(struct dmaprobe_allocation *a)
{
	size_t length = a->mem.length;

	switch (a->kind) {
	case DMAPROBE_ALLOC_COHERENT:
		dma_free_attrs(a->dev, length, a->cpu, a->addr, a->attrs);
		break;
	case DMAPROBE_ALLOC_NONCOHERENT:
		dma_free_noncoherent(a->dev, length, a->cpu, a->addr, a->dir);
		break;
	case DMAPROBE_ALLOC_PAGES:
		dma_free_pages(a->dev, length, virt_to_page(a->cpu), a->addr,
			       a->dir);
		break;
	default:
		if (a->cpu)
			dma_vunmap_noncontiguous(a->dev, a->cpu);
		dma_free_noncontiguous(a->dev, length, a->sgt, a->dir);
		break;
	}
}

static int alloc_memory(const struct dmaprobe_session *s,
			struct dmaprobe_allocation *a)
{
	size_t length = a->mem.length;
	struct page *page;
	int ret;

	switch (a->kind) {
	case DMAPROBE_ALLOC_COHERENT:
		a->cpu = dma_alloc_attrs(a->dev, length, &a->addr, ALLOC_GFP,
					 a->attrs);
		break;
	case DMAPROBE_ALLOC_NONCOHERENT:
		a->cpu = dma_alloc_noncoherent(a->dev, length, &a->addr, a->dir,
					       ALLOC_GFP);
		break;
	case DMAPROBE_ALLOC_PAGES:
		page = dma_alloc_pages(a->dev, length, &a->addr, a->dir,
				       ALLOC_GFP);
		a->cpu = page ? page_address(page) : NULL;
		break;
	default:
		a->sgt = dma_alloc_noncontiguous(a->dev, length, a->dir,
						 ALLOC_GFP, a->attrs);
		if (!a->sgt)
			return -ENOMEM;
		a->addr = sg_dma_address(a->sgt->sgl);
		return 0;
	}
	if (!a->cpu)
		return -ENOMEM;

	ret = zero_unmapped(s, a);
	if (ret)
		free_memory(a);
	return ret;
}

/*
 * The table of the pieces an allocation is made of: its own, or made in @room.
 * -ENXIO when the kernel cannot tell.
 */
static struct sg_table *get_table(struct dmaprobe_allocation *a,
				  struct sg_table *room)
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
		sg_set_page(room->sgl, virt_to_page(a->cpu),
			    PAGE_ALIGN(a->mem.length), 0);
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

struct collect {
	struct dmaprobe_memory *mem;
	unsigned long nr_pages;
	u32 nr_pieces;
};

static int collect_pages(void *data, struct scatterlist *sg, u64 length)
{
	struct collect *c = data;
	unsigned long i;

	for (i = 0; i < PFN_UP(length) && c->nr_pages < c->mem->nr_pages; i++)
		c->mem->pages[c->nr_pages++] = sg_page(sg) + i;
	c->nr_pieces++;
	return 0;
}

/* Find the pages. That the kernel cannot tell them is no failure. */
static int find_pages(struct dmaprobe_allocation *a, u32 *nr_pieces)
{
	struct collect c = { .mem = &a->mem };
	int ret;

	a->mem.pages = kvmalloc_array(a->mem.nr_pages, sizeof(*a->mem.pages),
				      GFP_KERNEL_ACCOUNT);
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

/* --- mmap ------------------------------------------------------------------ */

struct view {
	struct list_head node;		/* under dmaprobe_allocation::lock */
	struct dmaprobe_allocation *a;
	struct mm_struct *mm;		/* of the mmap() call */
	refcount_t vmas;
};

static void view_put(struct view *view)
{
	struct dmaprobe_allocation *a = view->a;

	if (!refcount_dec_and_test(&view->vmas))
		return;
	scoped_guard(spinlock, &a->lock)
		list_del(&view->node);
	mmdrop(view->mm);
	kfree(view);
	dmaprobe_object_put(&a->mem.obj);
}

static void view_open(struct vm_area_struct *vma)
{
	struct view *view = vma->vm_private_data;

	refcount_inc(&view->vmas);
}

static void view_close(struct vm_area_struct *vma)
{
	view_put(vma->vm_private_data);
}

/* All was mapped by mmap(), so it is not there any more. */
static vm_fault_t view_fault(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct view_ops = {
	.open = view_open,
	.close = view_close,
	.fault = view_fault,
};

static int map_view(struct dmaprobe_allocation *a, struct vm_area_struct *vma)
{
	size_t length = a->mem.length;

	switch (a->kind) {
	case DMAPROBE_ALLOC_COHERENT:
		return dma_mmap_attrs(a->dev, vma, a->cpu, a->addr, length,
				      a->attrs);
	case DMAPROBE_ALLOC_NONCONTIGUOUS:
		return dma_mmap_noncontiguous(a->dev, vma, length, a->sgt);
	default:
		return dma_mmap_pages(a->dev, vma, length, virt_to_page(a->cpu));
	}
}

/**
 * dmaprobe_allocation_mmap - map an allocation into a program
 * @a: the allocation, held by the caller
 * @vma: where to, in whatever file
 * @first: the first page of the allocation to be seen there
 *
 * Return: 0 or a negative errno; -ENODEV when it was revoked
 */
int dmaprobe_allocation_mmap(struct dmaprobe_allocation *a,
			     struct vm_area_struct *vma, unsigned long first)
{
	unsigned long pgoff = vma->vm_pgoff;
	struct view *view;
	int ret;

	if (first >= a->mem.nr_pages ||
	    vma_pages(vma) > a->mem.nr_pages - first)
		return -EINVAL;

	view = kzalloc_obj(*view, GFP_KERNEL_ACCOUNT);
	if (!view)
		return -ENOMEM;
	view->a = a;
	view->mm = vma->vm_mm;
	refcount_set(&view->vmas, 1);
	scoped_guard(spinlock, &a->lock) {
		if (a->gone) {
			kfree(view);
			return -ENODEV;
		}
		list_add(&view->node, &a->views);
	}
	/* From here to the end of mmap(), revoking waits: see settle(). */
	mmgrab(view->mm);
	dmaprobe_object_hold(&a->mem.obj);

	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	/*
	 * The offset that the DMA API's calls go by. It must be put back: zapping
	 * finds the VMA by the one that mmap() was given.
	 */
	vma->vm_pgoff = first;
	ret = map_view(a, vma);
	vma->vm_pgoff = pgoff;
	if (ret) {
		view_put(view);
		return ret;
	}
	vma->vm_private_data = view;
	vma->vm_ops = &view_ops;
	return 0;
}

static int allocation_mmap(struct dmaprobe_object *obj,
			   struct vm_area_struct *vma, unsigned long first_page)
{
	return dmaprobe_allocation_mmap(to_allocation(obj), vma, first_page);
}

/*
 * Wait until every VMA with pages of the allocation can be found through the
 * address space of its file; no new ones can come.
 *
 * mmap() calls us, who fill the VMA, before it links the VMA there, and holds
 * the write lock of its mm all the time. A view is in the list before its VMA is
 * filled. So whoever gets the lock of a view's mm after the allocation was marked
 * as gone finds the VMA linked, or torn down because mmap() failed. What fork()
 * and mremap() make of a VMA is linked before it is filled, and behind the one
 * that it is filled from, in the order in which zapping goes.
 */
static void settle(struct dmaprobe_allocation *a)
{
	LIST_HEAD(todo);

	spin_lock(&a->lock);
	a->gone = true;
	list_splice_init(&a->views, &todo);
	while (!list_empty(&todo)) {
		struct view *view = list_first_entry(&todo, struct view, node);
		struct mm_struct *mm = view->mm;

		list_move(&view->node, &a->views);
		mmgrab(mm);
		spin_unlock(&a->lock);

		mmap_read_lock(mm);
		mmap_read_unlock(mm);
		mmdrop(mm);
		cond_resched();

		spin_lock(&a->lock);
	}
	spin_unlock(&a->lock);
}

/* --- the object ------------------------------------------------------------ */

static void allocation_revoke(struct dmaprobe_object *obj)
{
	struct dmaprobe_allocation *a = to_allocation(obj);
	struct dmaprobe_session *s = obj->session;

	settle(a);
	unmap_mapping_range(s->inode->i_mapping, dmaprobe_mmap_offset(obj->id),
			    PAGE_ALIGN(a->mem.length), true);
	dmaprobe_export_revoke(a);
	free_memory(a);
	dmaprobe_uncharge(s, a->mem.nr_pages);
}

static void allocation_release(struct dmaprobe_object *obj)
{
	struct dmaprobe_allocation *a = to_allocation(obj);

	/* With the memory, the session may be gone as well. */
	if (!a->gone) {
		free_memory(a);
		dmaprobe_uncharge(obj->session, a->mem.nr_pages);
	}
	dmaprobe_memory_free(&a->mem);
}

/* The address for the CPU, made at the first use for noncontiguous memory. */
static void *kernel_address(struct dmaprobe_allocation *a)
{
	void *new;

	if (a->kind != DMAPROBE_ALLOC_NONCONTIGUOUS || READ_ONCE(a->cpu))
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
	bool remapped = a->kind == DMAPROBE_ALLOC_NONCONTIGUOUS;
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

static int allocation_sync(struct dmaprobe_object *obj,
			   const struct dmaprobe_sync *cmd)
{
	struct dmaprobe_allocation *a = to_allocation(obj);
	u64 length = a->mem.length;

	if (a->kind == DMAPROBE_ALLOC_COHERENT)
		return -EOPNOTSUPP;
	if (cmd->length > length || cmd->offset > length - cmd->length)
		return -EINVAL;
	if (a->kind == DMAPROBE_ALLOC_NONCONTIGUOUS && cmd->length != length)
		return -EINVAL;
	dmaprobe_allocation_sync(a, cmd->target, cmd->offset, cmd->length);
	return 0;
}

/**
 * dmaprobe_allocation_sync - synchronise memory that is not coherent
 * @a: the allocation; not revoked
 * @target: one of enum dmaprobe_sync_target
 * @offset: start of the range
 * @length: its length; noncontiguous memory is synchronised as a whole
 */
void dmaprobe_allocation_sync(struct dmaprobe_allocation *a, u32 target,
			      u64 offset, u64 length)
{
	bool for_cpu = target == DMAPROBE_SYNC_FOR_CPU;

	switch (a->kind) {
	case DMAPROBE_ALLOC_COHERENT:
		break;
	case DMAPROBE_ALLOC_NONCONTIGUOUS:
		if (for_cpu)
			dma_sync_sgtable_for_cpu(a->dev, a->sgt, a->dir);
		else
			dma_sync_sgtable_for_device(a->dev, a->sgt, a->dir);
		break;
	default:
		if (for_cpu)
			dma_sync_single_range_for_cpu(a->dev, a->addr, offset,
						      length, a->dir);
		else
			dma_sync_single_range_for_device(a->dev, a->addr, offset,
							 length, a->dir);
		break;
	}
}

static int allocation_segments(struct dmaprobe_object *obj, struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_allocation *a = to_allocation(obj);

	return dmaprobe_segments_one(ucmd, a->addr, a->mem.length);
}

static const struct dmaprobe_object_type allocation_type = {
	.release = allocation_release,
	.revoke = allocation_revoke,
	.memory = true,
	.has_pages = true,
	.stats = offsetof(struct dmaprobe_stats, nr_allocs),
	.mmap = allocation_mmap,
	.copy = allocation_copy,
	.sync = allocation_sync,
	.segments = allocation_segments,
};

/**
 * dmaprobe_allocation_get - look an allocation up
 * @ucmd: the call that names it
 * @id: its id
 *
 * Return: the allocation with a reference taken, or ERR_PTR(-ENOENT)
 */
struct dmaprobe_allocation *
dmaprobe_allocation_get(const struct dmaprobe_ucmd *ucmd, u32 id)
{
	struct dmaprobe_object *obj;

	obj = dmaprobe_object_get(ucmd, id, &allocation_type);
	return IS_ERR(obj) ? ERR_CAST(obj) : to_allocation(obj);
}

int dmaprobe_op_alloc(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_alloc *cmd = ucmd->cmd;
	struct dmaprobe_session *s = ucmd->session;
	struct dmaprobe_allocation *a;
	unsigned long attrs;
	u64 taken = 0;
	int ret;

	if (cmd->kind > DMAPROBE_ALLOC_NONCONTIGUOUS ||
	    !dmaprobe_valid_dir(cmd->dir) ||
	    !cmd->length || cmd->length > ALLOC_MAX_LENGTH)
		return -EINVAL;
	if (cmd->kind == DMAPROBE_ALLOC_COHERENT) {
		if (cmd->dir != DMAPROBE_DIR_BIDIRECTIONAL)
			return -EINVAL;
		taken = COHERENT_ATTRS;
	} else if (cmd->kind == DMAPROBE_ALLOC_NONCONTIGUOUS) {
		if (!dmaprobe_one_segment(dmaprobe_dma_dev(s), cmd->length))
			return -EINVAL;
		taken = DMAPROBE_ATTR_ALLOC_SINGLE_PAGES;
	}
	ret = dmaprobe_attrs(cmd->attrs, taken, &attrs);
	if (ret)
		return ret;

	a = kzalloc_obj(*a, GFP_KERNEL_ACCOUNT);
	if (!a)
		return -ENOMEM;
	spin_lock_init(&a->lock);
	INIT_LIST_HEAD(&a->views);
	a->dev = dmaprobe_dma_dev(s);
	a->kind = cmd->kind;
	a->dir = cmd->dir;
	a->attrs = attrs;
	a->mem.length = cmd->length;
	a->mem.nr_pages = PFN_UP(cmd->length);

	ret = dmaprobe_charge(s, a->mem.nr_pages);
	if (ret)
		goto err_free;
	ret = alloc_memory(s, a);
	if (ret)
		goto err_uncharge;
	ret = find_pages(a, &cmd->nr_entries);
	if (ret)
		goto err_memory;
	ret = dmaprobe_object_reserve(s, &a->mem.obj, &allocation_type);
	if (ret)
		goto err_memory;

	cmd->id = a->mem.obj.id;
	cmd->dma_addr = a->addr;
	cmd->mmap_offset = dmaprobe_mmap_offset(cmd->id);
	dmaprobe_object_publish(ucmd, &a->mem.obj);
	return 0;

err_memory:
	dmaprobe_memory_free(&a->mem);
	free_memory(a);
err_uncharge:
	dmaprobe_uncharge(s, a->mem.nr_pages);
err_free:
	kfree(a);
	return ret;
}

int dmaprobe_op_alloc_free(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_alloc_free *cmd = ucmd->cmd;

	if (cmd->__reserved)
		return -EINVAL;
	return dmaprobe_object_destroy(ucmd, cmd->id, &allocation_type);
}

struct tell {
	struct dmaprobe_sgtable_entry *out;
	u32 room;
	u32 nr;
	bool phys;
};

static int tell_piece(void *data, struct scatterlist *sg, u64 length)
{
	struct tell *t = data;

	if (t->nr < t->room) {
		t->out[t->nr].length = length;
		t->out[t->nr].phys = t->phys ? sg_phys(sg) : 0;
	}
	t->nr++;
	return 0;
}

int dmaprobe_op_sgtable(struct dmaprobe_ucmd *ucmd)
{
	struct dmaprobe_sgtable *cmd = ucmd->cmd;
	struct tell t = { .phys = cmd->flags & DMAPROBE_SGTABLE_PHYS };
	struct dmaprobe_allocation *a;
	int ret;

	if (t.phys && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	a = dmaprobe_allocation_get(ucmd, cmd->id);
	if (IS_ERR(a))
		return PTR_ERR(a);
	/* No piece is smaller than a page. */
	t.room = min(cmd->nr_entries, a->mem.nr_pages);
	ret = dmaprobe_tell(ucmd, cmd->entries, t.room, sizeof(*t.out));
	if (!ret) {
		t.out = ucmd->array;
		ret = visit_pieces(a, &t, tell_piece);
	}
	dmaprobe_object_put(&a->mem.obj);
	/* Of what there is room for, but no piece, nothing is written. */
	ucmd->array_size = min(t.nr, t.room) * sizeof(*t.out);
	cmd->nr_entries = t.nr;
	return ret;
}
