// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmaps of allocations.
 *
 * Each mmap() makes a view, which all that fork(), mremap() and munmap() of a part make of its
 * VMA share. It holds the allocation, and leads to the mm: revoking waits for mmap()s under way.
 *
 * mmap() fills a VMA before it links it into the address space of its file, where zapping looks,
 * and holds the write lock of its mm all the time. Letting go of that changes mm_lock_seq. We do
 * not ask for the lock: other threads could keep it from us. What fork() and mremap() make of a
 * VMA is linked before it is filled, and behind the one it is filled from, as zapping goes.
 */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "compat.h"
#include "private.h"

struct dmaprobe_view {
	struct list_head node;		/* under dmaprobe_allocation::lock */
	struct dmaprobe_allocation *a;
	struct mm_struct *mm;		/* of the mmap() call, */
	unsigned int mm_seq;		/* and its mm_lock_seq then */
	bool linked;			/* seen to be; mm_lock_seq wraps */
	refcount_t vmas;
};

/* Look which mmap()s have linked their VMA. Return whether all have. */
static bool all_linked(struct dmaprobe_allocation *a)
{
	struct dmaprobe_view *view;
	bool all = true;

	spin_lock(&a->lock);
	list_for_each_entry(view, &a->views, node) {
		view->linked |= view->mm_seq != dmaprobe_mm_seq(view->mm) ||
				!rwsem_is_locked(&view->mm->mmap_lock);
		all &= view->linked;
	}
	spin_unlock(&a->lock);
	return all;
}

/* Long before 2^31 more takers of the lock have come and gone. */
void dmaprobe_look_at_views(struct work_struct *work)
{
	struct dmaprobe_allocation *a;

	a = container_of(work, struct dmaprobe_allocation, views_work.work);
	if (!all_linked(a))
		schedule_delayed_work(&a->views_work, HZ);
}

static void view_put(struct dmaprobe_view *view)
{
	struct dmaprobe_allocation *a = view->a;

	if (!refcount_dec_and_test(&view->vmas))
		return;
	scoped_guard(spinlock, &a->lock) {
		list_del(&view->node);
		a->nr_views--;
	}
	mmdrop(view->mm);
	kfree(view);
	dmaprobe_object_put(&a->mem.obj);
}

static void view_open(struct vm_area_struct *vma)
{
	struct dmaprobe_view *view = vma->vm_private_data;

	refcount_inc(&view->vmas);
}

static void view_close(struct vm_area_struct *vma)
{
	view_put(vma->vm_private_data);
}

/* All is mapped by mmap(): a fault means that it is not there any more, and gives SIGBUS. */
static const struct vm_operations_struct dmaprobe_view_ops = {
	.open = view_open,
	.close = view_close,
};

static int map_view(struct dmaprobe_allocation *a, struct vm_area_struct *vma)
{
	size_t length = a->mem.length;

	switch (a->kind) {
	case DMAPROBE_ALLOC_KIND_COHERENT:
		return dma_mmap_attrs(a->dev, vma, a->cpu, a->addr, length, a->attrs);
	case DMAPROBE_ALLOC_KIND_NONCONTIGUOUS:
		return dma_mmap_noncontiguous(a->dev, vma, length, a->sgt);
	default:
		return dma_mmap_pages(a->dev, vma, length, virt_to_page(a->cpu));
	}
}

/* Map an allocation into a program, from page @first on, through whatever file. */
int dmaprobe_allocation_mmap(struct dmaprobe_allocation *a,
			     struct vm_area_struct *vma, unsigned long first)
{
	unsigned long pgoff = vma->vm_pgoff;
	struct dmaprobe_view *view;
	int ret;

	if (first >= a->mem.nr_pages || vma_pages(vma) > a->mem.nr_pages - first)
		return -EINVAL;

	view = kzalloc_obj(*view, GFP_KERNEL_ACCOUNT);
	if (!view)
		return -ENOMEM;
	view->a = a;
	view->mm = vma->vm_mm;
	view->mm_seq = dmaprobe_mm_seq(view->mm);
	refcount_set(&view->vmas, 1);
	scoped_guard(spinlock, &a->lock) {
		ret = a->revoked ? -ENODEV : a->nr_views == DMAPROBE_MAX_USERS ? -ENOMEM : 0;
		if (!ret) {
			list_add(&view->node, &a->views);
			a->nr_views++;
		}
	}
	if (ret) {
		kfree(view);
		return ret;
	}
	mmgrab(view->mm);
	dmaprobe_object_hold(&a->mem.obj);
	schedule_delayed_work(&a->views_work, HZ);

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
	vm_flags_clear(vma, VM_PAT);
	vma->vm_private_data = view;
	vma->vm_ops = &dmaprobe_view_ops;
	return 0;
}

/* Have everything that is mmapped be where zapping finds it, and let nothing more be mmapped. */
void dmaprobe_wait_for_mmaps(struct dmaprobe_allocation *a)
{
	scoped_guard(spinlock, &a->lock)
		a->revoked = true;
	while (!all_linked(a))
		fsleep(1000);
}
